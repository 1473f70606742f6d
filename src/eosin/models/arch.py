"""timm's VisionTransformer by name and arguments, with errors a person can act on."""

import difflib
import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eosin.config.model import ModelConfig
from eosin.errors import MissingDependency, UserError
from eosin.words import nearest_of


def import_timm() -> Any:
    """The timm module; `MissingDependency` where it is not installed."""
    define_missing_ops()
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in {"timm", "torchvision"}:
            raise MissingDependency(error.name, "train") from error
        raise
    return timm


def resolved_arch_args(config: ModelConfig, global_px: int) -> dict[str, Any]:
    """Keyword arguments with which `timm.create_model(arch, num_classes=0, **args)` builds the backbone.

    `arch_args` of the configuration win over what follows from the rest of it.
    """
    return {
        "img_size": global_px,
        "dynamic_img_size": True,
        "global_pool": "token",
        "init_values": config.layer_scale or (None if _family(config.arch) == _ROTARY else 0.0),
        **config.arch_args,
    }


_PLAIN, _ROTARY = "timm.models.vision_transformer", "timm.models.eva"


def is_rotary(vit: Any) -> bool:
    """Whether `vit` is of timm's Eva, as DINOv3's backbones are: rotary positions, registers."""
    return type(vit).__module__ == _ROTARY


def _family(arch: str) -> str:
    timm = import_timm()
    return str(timm.model_entrypoint(arch).__module__) if timm.is_model(arch) else ""


def create_vit(arch: str, arch_args: dict[str, Any], *, meta: bool = False) -> Any:
    """A timm VisionTransformer without a classifier, its weights as torch's global generator draws them.

    `meta`: shapes only, no memory. Raises `UserError` for a name timm does not know (with the nearest ones),
    an argument it rejects, or a model that is neither a plain VisionTransformer nor one with rotary positions
    as DINOv3's, with a class token.
    """
    timm = import_timm()
    if not timm.is_model(arch) or "." in arch:
        raise _unknown(arch, timm)
    types = _named_types(arch_args)
    try:
        with torch.device("meta" if meta else "cpu"):
            # timm.create_model leaves arguments out that are None, as LayerScale of none is.
            vit = timm.model_entrypoint(arch)(num_classes=0, pretrained=False, **{**arch_args, **types})
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, ArithmeticError,
            OSError) as error:  # fmt: skip
        family = _family(arch)
        hint = "change model.arch or model.arch_args"
        if family not in (_PLAIN, _ROTARY):
            hint = f"it is of {family}, not a plain VisionTransformer"
        raise UserError(f"timm cannot build {arch} with {arch_args}: {_reason(error)}", hint=hint) from error
    _require_plain_vit(arch, vit)
    return vit


def _named_types(arch_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of timm that are classes, which a configuration can only name: `mlp_layer: SwiGLUPacked`.

    What timm itself finds by a short name stays one, as it must in an export, which timm alone loads. Raises
    `UserError` for a name that is neither that nor one of `timm.layers`.
    """
    from timm import layers

    found = {}
    for key, value in arch_args.items():
        if key.endswith("_layer") and isinstance(value, str) and value and not _is_short_name(key, value):
            by_class = key not in _BY_SHORT_NAME
            kind = getattr(layers, value, None) if by_class else None
            if not isinstance(kind, type | functools.partial):
                such_as = "such as mlp_layer: SwiGLUPacked, act_layer: silu"
                raise UserError(
                    f"model.arch_args.{key}: timm.layers has no {value!r}"
                    + ("" if by_class else " among its short names"),
                    hint=nearest_of(value, dir(layers) if by_class else (), instead=such_as, most=3),
                )
            found[key] = kind
    return found


_BY_SHORT_NAME = ("act_layer", "attn_layer", "norm_layer", "embed_norm_layer")


def _is_short_name(key: str, value: str) -> bool:
    """Whether timm's own registry for the argument `key` has `value`, such as `attn_layer: diff`."""
    from timm.layers import get_act_layer, get_norm_layer
    from timm.models.vision_transformer import ATTN_LAYERS

    if key not in _BY_SHORT_NAME:
        return False
    if key == "attn_layer":
        return value in ATTN_LAYERS
    try:
        return (get_act_layer if key == "act_layer" else get_norm_layer)(value) is not None
    except KeyError:
        return False


class OfVit(nn.Module):
    """A module around the network `vit` of timm."""

    vit: Any

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""
        return patch_size_of(self.vit)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return int(self.vit.num_prefix_tokens)


def patch_size_of(vit: Any) -> int:
    """Side of the square patch a token stands for, px."""
    return int(vit.patch_embed.patch_size[0])


def require_multiple(side_px: int, patch_size: int, name: str) -> None:
    """Raise `UserError`, with the arithmetic, unless a crop is a whole number of patches."""
    if side_px % patch_size:
        whole = side_px // patch_size
        raise UserError(
            f"{name} {side_px} is not a multiple of the backbone's patch size {patch_size}: "
            f"{side_px} = {whole} × {patch_size} + {side_px % patch_size}",
            hint=f"{whole * patch_size} or {(whole + 1) * patch_size} would do",
        )


def _unknown(arch: str, timm: Any) -> UserError:
    base = arch.split(".")[0]
    if base != arch and timm.is_model(base):
        return UserError(
            f"model.arch {arch} names pretrained weights",
            hint=f"write model.arch={base} and model.init=timm:{arch}",
        )
    names = timm.list_models("*vit*", module="vision_transformer")
    near = [name for name in difflib.get_close_matches(base, names, n=6, cutoff=0.5) if _is_plain(name)][:3]
    return UserError(
        f"timm {timm.__version__} has no model {arch!r}",
        hint=f"did you mean {', '.join(near)}?" if near else "take one such as vit_small_patch16_224",
    )


def _is_plain(arch: str) -> bool:
    """Whether `create_vit` would take it: what is suggested is not refused then."""
    try:
        create_vit(arch, {"dynamic_img_size": True, "global_pool": "token"}, meta=True)
    except UserError:
        return False
    return True


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.split("__init__() ")[-1].splitlines()[0]


def _require_plain_vit(arch: str, vit: Any) -> None:
    from timm.layers import DropPath
    from timm.models.eva import Eva, EvaAttention, EvaBlock
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    rotary = type(vit) is Eva
    attention, block_type = (EvaAttention, EvaBlock) if rotary else (Attention, Block)
    problem = ""
    if not rotary and not isinstance(vit, VisionTransformer):
        problem = f"is a {type(vit).__name__}, not a VisionTransformer"
    elif vit.cls_token is None:
        problem = "has no class token"
    elif vit.pos_embed is None and not rotary:
        problem = "has no position embedding"
    elif rotary and (vit.rope is None or vit.rope_mixed or getattr(vit.rope, "aug_active", False)):
        problem = "has other rotary positions than DINOv3's, or some drawn at random"
    elif not len(vit.blocks):
        problem = "has no blocks"
    elif len(set(vit.patch_embed.patch_size)) > 1 or vit.patch_embed.proj.in_channels != 3:
        problem = "takes other patches than squares of red, green and blue"
    elif not isinstance(vit.fc_norm, nn.Identity):
        problem = "has its norm after pooling, as with global_pool: avg, so its tokens would have none"
    elif any(not parameter.numel() for parameter in vit.parameters()):
        problem = "has layers of no width"
    elif not all(type(block) is block_type for block in vit.blocks):
        problem = f"has blocks of {type(vit.blocks[0]).__name__}, whose drop path is not known"
    elif not all(type(block.attn) is attention for block in vit.blocks):
        problem = f"has attention of {type(vit.blocks[0].attn).__name__}, which cannot be packed"
    elif rotary and any(b.attn.qkv is None or b.attn.qkv_bias_separate for b in vit.blocks):
        problem = "has queries, keys and values apart, which cannot be packed"
    elif any(block.attn.num_heads < 1 for block in vit.blocks):
        problem = "has fewer than one attention head"
    elif not isinstance(vit.patch_drop, nn.Identity | None):
        problem = "was given patch dropout, whose draws would depend on the world"
    elif any(isinstance(module, DropPath) for module in vit.modules()):
        problem = "was given timm's drop path, whose draws would depend on the world: set model.drop_path"
    elif any(isinstance(module, nn.Dropout) and module.p > 0 for module in vit.modules()):
        problem = "was given dropout, whose draws would depend on the world"
    elif not vit.dynamic_img_size:
        problem = "was asked for a fixed image size, and crops have two sizes"
    if problem:
        raise UserError(f"{arch} {problem}", hint="take a plain one, such as vit_small_patch16_224")


_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []


@functools.cache
def define_missing_ops() -> bool:
    """Define the schemas of `torchvision::nms` and `qnms` where torchvision's own are missing.

    torchvision's wheel from PyPI is a CUDA build. Beside a CPU build of torch its C++ library does not load,
    and `import torchvision`, which timm does, then fails while it registers fake kernels for operators that
    were never defined. eosin calls none of them, so defining their schemas is enough.

    Call it before `import timm`. Returns whether anything had to be defined; torchvision's own
    operators are left alone where its library loads.
    """
    if importlib.util.find_spec("torchvision") is None or _own_ops_load():
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}{_NMS}")
    _libraries.append(library)  # an operator lives as long as its Library object
    return True


def _own_ops_load() -> bool:
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations or [] if spec else []
    binaries = [path for folder in folders for path in Path(folder).glob("_C*.so")]
    for binary in binaries:
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            continue
    return hasattr(torch.ops.torchvision, "nms")
