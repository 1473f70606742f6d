"""Initial weights from timm, the hub or a file: checked before training, then loaded tensor by tensor."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import COMPLETE, RunLayout
from eosin.models.arch import create_vit, import_timm, resolved_arch_args
from eosin.models.backbone import Backbone
from eosin.models.weights import (
    HUB_PREFIX,
    create_pretrained,
    is_pickle,
    read_tensors,
    require_timm_weights,
)
from eosin.runs import load_run
from eosin.storage import ByteRange, NotFound, open_store

V = TypeVar("V")

_EMBEDDING = "patch_embed.proj.weight"

TIMM_PREFIX = "timm:"
RUN_PREFIX = "run:"
"""What `model.init` begins with where another run's student, teacher and heads are to be taken."""


@dataclass(frozen=True)
class InitReport:
    """What `model.init` did, tensor by tensor (names of the timm model)."""

    source: str
    loaded: tuple[str, ...] = ()
    interpolated: tuple[str, ...] = ()
    """Loaded after resampling: position and patch embeddings of another size."""
    dropped: tuple[str, ...] = ()
    """In the file, not in the model, or of another shape."""
    missing: tuple[str, ...] = ()
    """In the model, not in the file: as randomly drawn."""
    identity_layer_scale: bool = False
    """The file has no LayerScale: ours begins at 1, which leaves the loaded function as it was."""

    def summary(self) -> dict[str, Any]:
        """As fields of the `init` event."""
        return {
            "source": self.source,
            "converted_from_pytorch": is_pickle(self.source),
            "num_loaded": len(self.loaded),
            "interpolated": list(self.interpolated),
            "dropped": list(self.dropped),
            "missing": list(self.missing),
            "identity_layer_scale": self.identity_layer_scale,
        }


def initialize(backbone: Backbone, source: str) -> InitReport:
    """Load `source` (`random`, `timm:NAME`, `hf-hub:OWNER/NAME`, or the URI of a file) into `backbone`.

    A run (`run:URI`) is more than a backbone: `eosin.training.warm_start` takes it. Raises `UserError`
    where the name or file is not there, is not one of tensors, or fits nothing.
    """
    if source == "random":
        return InitReport(source)
    if source.startswith((TIMM_PREFIX, HUB_PREFIX)):
        model = create_pretrained(source.removeprefix(TIMM_PREFIX), "model.init")
        return load_weights(backbone, dict(model.state_dict()), source)
    return load_weights(backbone, read_tensors(source, "model.init"), source)


def load_weights(backbone: Backbone, state: dict[str, Tensor], source: str) -> InitReport:
    """Load a state dict in timm's or DINOv2's own layout; sizes that differ are resampled bicubically."""
    convert = sys.modules[type(backbone.vit).__module__].checkpoint_filter_fn
    state = place_class_token(strip_prefix(state), backbone.vit)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    mask_token = state.get("mask_token")
    converted = convert(dict(state), backbone.vit)
    own = backbone.vit.state_dict()
    fits = {
        name: value for name, value in converted.items() if name in own and value.shape == own[name].shape
    }
    if _EMBEDDING not in fits or not any(name.startswith("blocks.") for name in fits):
        raise UserError(
            f"model.init {source}: the weights do not fit model.arch ({len(fits)} of {len(own)} tensors do)",
            hint="the embedding width, depth and layer names must be those of model.arch",
        )
    _require_whole_blocks(own, converted, fits, source)
    _require_finite(fits, source)
    missing = [name for name in own if name not in fits]
    identity = _layer_scale_to_one(own, missing)
    backbone.vit.load_state_dict({**own, **fits})
    if mask_token is not None and mask_token.numel() == backbone.mask_token.numel():
        with torch.no_grad():
            backbone.mask_token.copy_(mask_token.view_as(backbone.mask_token))
    resampled = [name for name in fits if name in shapes and shapes[name] != tuple(fits[name].shape)]
    return InitReport(
        source,
        loaded=tuple(fits),
        interpolated=tuple(resampled),
        dropped=tuple(name for name in converted if name not in fits),
        missing=tuple(missing),
        identity_layer_scale=identity,
    )


def place_class_token(state: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """`state` with its class token's position where `vit` has it: in `pos_embed`, or, as models with
    registers have it, in the token itself. Either way the token enters the first block as it did."""
    state = dict(state)
    if "register_tokens" in state:  # as DINOv2 stores them
        state["reg_token"] = state.pop("register_tokens")
    token, positions = state.get("cls_token"), state.get("pos_embed")
    if token is None or positions is None or positions.ndim != 3:
        return state
    rows = positions.shape[1]
    if vit.no_embed_class and _is_square(rows - 1):
        state["cls_token"] = token + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    elif not vit.no_embed_class and _is_square(rows):
        empty = positions.new_zeros(1, vit.num_prefix_tokens, positions.shape[2])
        state["pos_embed"] = torch.cat([empty, positions], dim=1)
    return state


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _require_whole_blocks(
    own: dict[str, Tensor], found: dict[str, Tensor], fits: dict[str, Tensor], source: str
) -> None:
    """A block that is half random would undo what the others have learnt, so it is not begun with."""
    depths = [1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks."))
              for names in (found, own)]  # fmt: skip
    unfit = [n for n, value in own.items() if n.startswith("blocks.") and value.ndim > 1 and n not in fits]
    if depths[0] != depths[1]:
        problem = f"{depths[0]} blocks, and model.arch has {depths[1]}"
    elif unfit:
        theirs = f"is {list(found[unfit[0]].shape)}" if unfit[0] in found else "is missing"
        problem = f"other blocks than model.arch: {unfit[0]} {theirs}, not {list(own[unfit[0]].shape)}"
    else:
        return
    raise UserError(
        f"model.init {source} has {problem}", hint="set model.arch and model.arch_args to what the file holds"
    )


def _require_finite(tensors: dict[str, Tensor], source: str) -> None:
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise UserError(f"model.init {source}: {bad[0]} holds numbers that are not finite")


def _layer_scale_to_one(own: dict[str, Tensor], missing: list[str]) -> bool:
    scales = [name for name in own if name.endswith((".ls1.gamma", ".ls2.gamma", ".gamma_1", ".gamma_2"))]
    if not scales or any(name not in missing for name in scales):
        return False
    for name in scales:
        own[name] = torch.ones_like(own[name])
    return True


def strip_prefix(state: Mapping[str, V]) -> dict[str, V]:
    """The backbone's tensors (or their shapes) under their bare names, whatever they were stored under.

    Of several backbones the one that bears no prefix is taken, then the teacher.
    """
    found = [name.removesuffix(_EMBEDDING) for name in state if f".{name}".endswith(f".{_EMBEDDING}")]
    if not found:
        return dict(state)
    prefix = min(found, key=lambda each: (each != "", "teacher" not in each))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


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
    try:
        config = load_run(uri)
    except UserError as error:
        hint = f"name the finished run to go on from: --set model.init=run:URI\n  {error.hint}"
        raise UserError(f"model.init {RUN_PREFIX}{uri}: {error.message}", hint=hint) from None
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
    embedding = shapes.get(_EMBEDDING)
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    return (embedding[0], len(blocks)) if embedding and blocks else None
