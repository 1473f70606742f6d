"""Published weights: files of tensors read safely, and names of timm and the Hugging Face hub."""

import argparse
import difflib
import io
import pickle
import re
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from eosin.errors import TransientError, UserError
from eosin.models.arch import import_timm
from eosin.storage import NotFound, open_store, split_uri
from eosin.words import nearest_of

HUB_PREFIX = "hf-hub:"
"""What the name of a model on the Hugging Face hub begins with, as timm writes it."""
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")
# Where training codes put a network among other things, the one that is exported first.
_NESTED = ("teacher", "state_dict", "model", "model_state_dict", "student", "backbone")
# What torch's unpickler was seen to raise of 9,000 damaged or foreign files; anything else is a defect.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError,
    AssertionError, OverflowError, struct.error,
)  # fmt: skip
_PROBE_TIMEOUT_S = 10.0
_HTTP_MISSING = (401, 403, 404)


def read_tensors(uri: str, what: str) -> dict[str, Tensor]:
    """The tensors of the safetensors or PyTorch (.pth, .pt, .bin, .ckpt) file at `uri`, by name.

    A PyTorch file is read by torch's restricted unpickler, which knows tensors and plain containers and runs
    no code. Of several networks in one the teacher is taken. Raises `UserError`, naming `what` wanted it,
    where the file is not there or is anything else.
    """
    return parse_tensors(read_bytes(uri, what), uri, what)


def read_bytes(uri: str, what: str) -> bytes:
    """The bytes at `uri`; raises `UserError` where there are none."""
    folder, _, name = uri.rpartition("/")
    if not folder or not name:
        raise UserError(f"{what} {uri!r} is neither a name nor a URI")
    split_uri(folder)
    try:
        return open_store(folder).get(name)
    except NotFound:
        raise UserError(f"{what}: there is no {uri}") from None


def parse_tensors(data: bytes, uri: str, what: str) -> dict[str, Tensor]:
    """As `read_tensors`, of the bytes of the file at `uri`."""
    if uri.lower().endswith(_PICKLES):
        return _from_pickle(data, uri, what)
    try:
        return load(data)
    except SafetensorError as error:
        raise UserError(
            f"{what}: {uri} is not a safetensors file: {error}",
            hint="a PyTorch file must end in .pth, .pt, .bin or .ckpt",
        ) from error


def is_pickle(uri: str) -> bool:
    """Whether `uri` names a PyTorch file."""
    return uri.lower().endswith(_PICKLES)


def _from_pickle(data: bytes, uri: str, what: str) -> dict[str, Tensor]:
    try:
        # DINO's checkpoints hold its arguments, a container as plain as a dictionary.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, NotImplementedError) or "can't allocate memory" in str(error):
            raise  # of this machine or this program, not of the file
        # torch's own words advise to read it unsafely.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"beside tensors it names {found[1]}" if found else "it is damaged, or no PyTorch file"
        raise UserError(
            f"{what}: {uri} cannot be read safely: {reason}",
            hint="nothing of it was run; where you trust it, save its state_dict alone as safetensors",
        ) from error
    tensors = _tensors_in(found)
    if not tensors:
        raise UserError(f"{what}: {uri} holds no tensors by name")
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        kind = f"{tensors[odd[0]].dtype}, {tensors[odd[0]].layout}, on {tensors[odd[0]].device}"
        raise UserError(
            f"{what}: {uri} holds {odd[0]} as {kind}, which is no array of real numbers",
            hint="save it dense, with its values, in a floating type",
        )
    return tensors


def _is_plain(value: Tensor) -> bool:
    is_dense = value.layout == torch.strided and not value.is_meta
    return is_dense and not (value.is_quantized or value.is_complex())


def _tensors_in(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        return {}
    inner = next((found[name] for name in _NESTED if isinstance(found.get(name), Mapping)), None)
    if inner is not None:
        return _tensors_in(inner)
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def create_pretrained(name: str, what: str, **options: Any) -> Any:
    """timm's model `name` (or `hf-hub:OWNER/NAME`) with its published weights, without a classifier.

    `options`: for timm; with `pretrained=False` of a hub's model the configuration alone is fetched. Looks
    first whether the weights can be had, so that a machine without internet hears so at once and not after
    minutes of retries. Raises `UserError` for a name that does not exist, `TransientError` where the
    weights cannot be fetched.
    """
    timm = import_timm()
    _require_reachable(name, what)
    try:
        return timm.create_model(name, **{"pretrained": True, "num_classes": 0, **options})
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{what} {name}: {error}") from error
    except TypeError:  # an option that this kind of network does not know
        raise
    except Exception as error:  # whatever the hub's client raises: no network, throttled, gone
        raise _not_fetched(name, what, error) from error


def require_timm_weights(name: str) -> None:
    """Raises `UserError` with the nearest names where timm has no model `name`, or none with weights."""
    timm = import_timm()
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        vits = timm.list_models("vit*", module="vision_transformer", pretrained=True)
        hint = nearest_of(name, vits, instead="timm.list_pretrained('vit*') lists them", most=3)
        raise UserError(f"timm {timm.__version__} has no model {name!r}", hint=hint)
    known = timm.list_pretrained(f"{arch}.*")
    if not known or (tag and name not in known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0) if known else []
        hint = f"there are: {', '.join([*near, *(each for each in known if each not in near)][:5])}"
        raise UserError(
            f"timm {timm.__version__} has no weights {name!r}",
            hint=hint if known else "name another one, or the URI of a safetensors file",
        )


def hub_repository(name: str) -> str | None:
    """`OWNER/NAME` on the hub that the weights of `name` come from; None where they come from elsewhere."""
    if name.startswith(HUB_PREFIX):
        return name.removeprefix(HUB_PREFIX).partition("@")[0]
    config = import_timm().models.get_pretrained_cfg(name)
    return getattr(config, "hf_hub_id", None) or None


def _require_reachable(name: str, what: str) -> None:
    """Raise where the hub is wanted and cannot be reached, or has no such model, and no copy is here."""
    if not name.startswith(HUB_PREFIX):
        require_timm_weights(name)
    repository = hub_repository(name)
    if repository is None or _is_cached(repository):
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(repository, timeout=_PROBE_TIMEOUT_S)
    except HfHubHTTPError as error:
        response = error.response
        if response is not None and response.status_code in _HTTP_MISSING:
            raise UserError(
                f"{what}: {repository} is not on the hub, or not for you (HTTP {response.status_code})",
                hint="check the name; accept its terms on its page, and set HF_TOKEN, where it is gated",
            ) from error
        raise _not_fetched(name, what, error) from error
    except Exception as error:  # the client's own kinds of having no network differ between versions
        raise _not_fetched(name, what, error) from error


def _is_cached(repository: str) -> bool:
    """Whether the hub's client keeps weights of `repository` on this machine."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _not_fetched(name: str, what: str, error: Exception) -> TransientError:
    page = f"https://huggingface.co/{hub_repository(name) or f'timm/{name}'}"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return TransientError(
        f"{what} {name}: the weights could not be fetched: {reason}",
        hint=f"without internet, put model.safetensors of {page} into the bucket and give its URI, or fill"
        " HF_HOME beforehand",
    )
