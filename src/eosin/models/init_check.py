"""The check of `model.init` before training: whether it is there and of the shape of `model.arch`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import COMPLETE, RunLayout
from eosin.models.arch import create_vit, import_timm, resolved_arch_args
from eosin.models.init import RUN_PREFIX, TIMM_PREFIX, strip_prefix
from eosin.models.weights import HUB_PREFIX, is_pickle
from eosin.runs import load_run
from eosin.storage import ByteRange, NotFound, open_store

_MAX_HEADER_BYTES = 100 << 20
Shapes = Mapping[str, tuple[int, ...]]


def check_init(config: RunConfig) -> None:
    """Raises `UserError` where what `model.init` names is not there, or its width or depth are not those of
    `model.arch`. Reads a run's configuration or a file's header; of timm's models only the names. What the
    hub has, and what is in a PyTorch file, is known only once it is fetched.
    """
    init = config.model.init
    if init == "random" or init.startswith(HUB_PREFIX):
        return
    if init.startswith(TIMM_PREFIX):
        shapes = _of_timm(init.removeprefix(TIMM_PREFIX))
    elif init.startswith(RUN_PREFIX):
        shapes = _of_run(init.removeprefix(RUN_PREFIX))
    else:
        shapes = _of_file(init)
    own = _of_config(config)
    theirs, ours = _size(shapes), _size(own)
    if theirs is not None and theirs != ours:
        raise UserError(
            f"model.init {init} is {theirs[0]} features wide and {theirs[1]} blocks deep, model.arch"
            f" {config.model.arch} is {ours[0] if ours else '?'} and {ours[1] if ours else '?'}",
            hint="set model.arch and model.arch_args to what model.init is",
        )


def require_timm_weights(name: str) -> None:
    """Raises `UserError` with the nearest names where timm has no model `name`, or none with weights."""
    timm = import_timm()
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        near = timm.list_models("vit*", module="vision_transformer", pretrained=True)
        near = difflib.get_close_matches(name, near, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_pretrained('vit*') lists them"
        raise UserError(f"timm {timm.__version__} has no model {name!r}", hint=hint)
    known = timm.list_pretrained(f"{arch}.*")
    if not known or (tag and name not in known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0) if known else []
        hint = f"there are: {', '.join([*near, *(each for each in known if each not in near)][:5])}"
        raise UserError(
            f"timm {timm.__version__} has no weights {name!r}",
            hint=hint if known else "name another one, or the URI of a safetensors file",
        )


def _of_config(config: RunConfig) -> Shapes:
    args = resolved_arch_args(config.model, config.augment.global_px)
    vit = create_vit(config.model.arch, args, meta=True)
    return {name: tuple(value.shape) for name, value in vit.state_dict().items()}


def _of_timm(name: str) -> Shapes:
    require_timm_weights(name)
    import torch

    with torch.device("meta"):
        model = import_timm().create_model(name.split(".")[0], pretrained=False, num_classes=0)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _of_run(uri: str) -> Shapes:
    config = load_run(uri)
    keys = (info.key for info in open_store(uri).list(RunLayout.CHECKPOINTS))
    if not any(key.endswith(f"/{COMPLETE}") for key in keys):
        raise UserError(
            f"model.init: the run {uri} has no checkpoint",
            hint="a teacher that it exported can be started from: URI/teachers/NAME/model.safetensors",
        )
    return _of_config(config)


def _of_file(uri: str) -> Shapes:
    """Of the tensors of a safetensors file, by its header alone."""
    folder, _, name = uri.rpartition("/")
    if not folder or not name:
        raise UserError(f"model.init {uri!r} is neither random, timm:NAME nor a URI")
    store = open_store(folder)
    try:
        info = store.head(name)
    except NotFound:
        raise UserError(f"model.init: there is no {uri}") from None
    if is_pickle(uri):
        return {}
    try:
        (length,) = store.get_ranges([ByteRange(name, 0, 8, info.etag)]) if info.size_bytes >= 8 else (b"",)
        size_bytes = int.from_bytes(length, "little")
        if not 2 <= size_bytes <= min(info.size_bytes - 8, _MAX_HEADER_BYTES):
            raise ValueError("its header has no sensible length")
        (header,) = store.get_ranges([ByteRange(name, 8, size_bytes, info.etag)])
        tree = json.loads(header)
        shapes = {key: tuple(value["shape"]) for key, value in tree.items() if key != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"model.init: {uri} is not a safetensors file: {error}") from error
    return strip_prefix(shapes)


def _size(shapes: Shapes) -> tuple[int, int] | None:
    """(Width, blocks); None where the names are of another layout, which only loading can tell."""
    embedding = shapes.get("patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    return (embedding[0], len(blocks)) if embedding and blocks else None
