"""A pretrained model by its timm or Hugging Face name, or a timm architecture with a weights file."""

import hashlib
import sys
from functools import partial
from typing import Any

from torch import nn

from eosin.errors import UserError
from eosin.models.arch import import_timm
from eosin.models.weights import HUB_PREFIX, create_pretrained, parse_tensors, read_bytes
from eosin.records import TeacherCard
from eosin.words import first_of

_MAX_NAMED, _ERROR_CHARS = 3, 300
_HINT = "name the architecture that the file was saved from: timm:ARCH@URI"
# What training code puts before the names of a backbone's weights.
_PREFIXES = ("module.", "teacher.", "student.", "backbone.", "encoder.", "model.", "vit.")


def load_timm(name: str, *, pretrained: bool = True) -> tuple[nn.Module, TeacherCard]:
    """`name` with its published weights, its own input size and normalisation.

    `pretrained=False`: the network alone, as randomly drawn. A name that begins with `hf-hub:` is a model on
    the Hugging Face hub in timm's form. Raises `UserError` for a name timm does not know, `TransientError`
    where the weights cannot be had.
    """
    module = _create(name, pretrained=pretrained)
    return _judged(module, name, sha256="")


def load_timm_file(arch: str, uri: str) -> tuple[nn.Module, TeacherCard]:
    """timm's `arch` with the weights of the safetensors or PyTorch file at `uri`.

    Prefixes of training code (`module.`, `teacher.` …) are taken off, classifiers and heads left out, and
    timm converts the layouts it knows; every weight of the backbone must then be there. Raises
    `UserError` for an architecture timm does not know, a file that is not there or holds no tensors, and
    weights of another architecture, which it names.
    """
    data = read_bytes(uri, "weights")
    weights = parse_tensors(data, uri, "weights")
    try:
        module = _create(arch, pretrained=False)
    except RuntimeError as error:
        raise UserError(f"timm has no architecture {arch}: {error}") from error
    _fill(module, _stripped(weights), arch, uri)
    return _judged(module, f"{arch}@{uri}", sha256=hashlib.sha256(data).hexdigest())


def _create(name: str, *, pretrained: bool) -> Any:
    """With a position embedding that follows the image's size, where the network has one."""
    # What the hub has is known only there, the weights or not.
    fetched = pretrained or name.startswith(HUB_PREFIX)
    create = partial(create_pretrained, what="model", pretrained=pretrained) if fetched else _create_untrained
    try:
        return create(name, dynamic_img_size=True)
    except TypeError:
        return create(name)


def _create_untrained(name: str, **options: Any) -> Any:
    return import_timm().create_model(name, num_classes=0, **options)


def _stripped(weights: dict[str, Any]) -> dict[str, Any]:
    """Names without the prefixes that all of the backbone's weights share."""
    for _ in _PREFIXES:
        prefix = next((p for p in _PREFIXES if _is_shared(p, weights)), None)
        if prefix is None:
            break
        weights = {
            key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
        }
    return weights


def _is_shared(prefix: str, weights: dict[str, Any]) -> bool:
    """Most are named so: what is not is a head beside the backbone."""
    return 2 * sum(key.startswith(prefix) for key in weights) > len(weights)


def _fill(module: Any, weights: dict[str, Any], arch: str, uri: str) -> None:
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    try:
        found = module.load_state_dict(convert(weights, module) if convert else weights, strict=False)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{uri} holds no weights of {arch}: {reason[:_ERROR_CHARS]}", hint=_HINT) from error
    # A head beside the backbone is left out; more of what the backbone is made of is another backbone.
    parts = {key.partition(".")[0] for key in module.state_dict()}
    wrong = [f"{key} is missing" for key in found.missing_keys]
    wrong += [f"{key} is too much" for key in found.unexpected_keys if key.partition(".")[0] in parts]
    if wrong:
        named = first_of(wrong, _MAX_NAMED, "; ")
        raise UserError(f"{uri} holds weights of another architecture than {arch}: {named}", hint=_HINT)


def _judged(module: Any, name: str, *, sha256: str) -> tuple[nn.Module, TeacherCard]:
    data = import_timm().data.resolve_model_data_config(module)
    card = TeacherCard(
        name=f"timm:{name}",
        step=None,
        arch=name,
        arch_args={},
        img_px=data["input_size"][-1],
        num_features=int(module.num_features),
        mean=data["mean"],
        std=data["std"],
        mpp=(),
        weights_sha256=sha256,
    )
    return module.eval().requires_grad_(False), card
