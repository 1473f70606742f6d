"""A frozen backbone turned into a function from pixels to embeddings."""

import math
import re
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from eosin.errors import PermanentError, UserError
from eosin.records import TeacherCard

if TYPE_CHECKING:
    from eosin.evaluation.judged_model import JudgedModel

# On a CPU the activations of a few images stay in its caches, those of a whole batch do not.
_CPU_IMAGES = 8
_ATTENTION_PARTS = ("qkv", "q_norm", "k_norm", "num_heads", "scale")


class Forward:
    """`module` in eval mode on a GPU where there is one: uint8 pixels in, float32 embeddings out.

    Pixels [N, img_px, img_px, 3] are scaled to [0, 1] and normalised by the card's mean and std; the
    embedding is what timm's model gives with `num_classes=0` (the class token for a ViT), or what
    `read_out` names. float32 throughout, so that a figure does not depend on where it was taken. Raises
    `PermanentError` where the module gives no [N, D] matrix of the width its card names, `UserError` where
    it has not the class tokens that `read_out` asks for.
    """

    def __init__(self, module: nn.Module, card: TeacherCard, read_out: str = "last") -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.card = card
        self.img_px = card.img_px
        self._module: Any = module.eval().to(self.device)
        self._num_blocks, self._with_patches = _parsed(read_out)
        self._require_class_tokens(read_out)
        self._mean = torch.tensor(card.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(card.std, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def of(cls, model: "JudgedModel") -> Self:
        """Load `model`, to be read out as it says."""
        return cls(*model.load(), model.read_out)

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        at_once = len(pixels) if self.device.type == "cuda" else _CPU_IMAGES
        parts = [self._features(pixels[i : i + at_once]) for i in range(0, len(pixels), at_once)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _features(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        images = self._normalised(pixels)
        if self._num_blocks:
            return np.asarray(self._class_tokens(images).float().cpu().numpy())
        features = self._module(images)
        if features.shape != (len(pixels), self.card.num_features):
            raise PermanentError(
                f"model {self.card.name} gives {tuple(features.shape)} for {len(pixels)} images, "
                f"its card says {self.card.num_features} features",
                hint="the card and the weights are of different networks: export the teacher again",
            )
        return np.asarray(features.float().cpu().numpy())

    def _class_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """[N, blocks · D], the last block last, and where asked for the mean patch token after them.

        As `create_linear_input` of DINOv2's evaluation (facebookresearch/dinov2, dinov2/eval/linear.py).
        """
        found = self._module.forward_intermediates(
            images, indices=self._num_blocks, return_prefix_tokens=True, norm=True, output_fmt="NLC",
            intermediates_only=True,
        )  # fmt: skip
        parts = [prefix[:, 0] for _, prefix in found]
        return torch.cat([*parts, found[-1][0].mean(dim=1)] if self._with_patches else parts, dim=1)

    def _require_class_tokens(self, read_out: str) -> None:
        module, depth = self._module, len(getattr(self._module, "blocks", ()))
        has_them = getattr(module, "cls_token", None) is not None and hasattr(module, "forward_intermediates")
        if self._num_blocks and not (has_them and self._num_blocks <= depth):
            what = f"{depth} blocks" if has_them else "no class tokens by block"
            raise UserError(
                f"model {self.card.name} has {what}, and read_out is {read_out}",
                hint="read_out=last takes the output of any network",
            )

    @torch.inference_mode()
    def tokens(self, pixels: npt.NDArray[np.uint8], *, whole: bool = False) -> npt.NDArray[np.floating]:
        """Patch tokens of `pixels` as a map [N, D, h, w] from timm's `forward_features`, in float16.

        In float32 where they shall be `whole`.

        Class and register tokens are left out. A network that gives a map of features anyway (a
        convolutional one) gives that. Raises `PermanentError` where there is no square map.
        """
        forward_features = getattr(self._module, "forward_features", None)
        features = forward_features(self._normalised(pixels)) if forward_features else None
        if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
            raise self._no_map("it has none")
        if features.ndim == 4:
            channels_last = getattr(self._module, "output_fmt", "NCHW") == "NHWC"
            token_map = features.permute(0, 3, 1, 2) if channels_last else features
        else:
            patches = features[:, int(getattr(self._module, "num_prefix_tokens", 0)) :]
            side = math.isqrt(patches.shape[1])
            if side * side != patches.shape[1] or not side:
                raise self._no_map(f"{patches.shape[1]} tokens are no square")
            token_map = patches.transpose(1, 2).reshape(len(pixels), -1, side, side)
        return np.asarray((token_map.float() if whole else token_map.half()).cpu().numpy())

    @torch.inference_mode()
    def class_attention(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
        """How much the class token attends to each patch in the last block, [N, h, w], mean over heads.

        Register tokens are left out and what is left sums to 1. None for a network without a class token
        or with another kind of attention than timm's plain one.
        """
        attention = getattr(getattr(self._module, "blocks", [None])[-1], "attn", None)
        if attention is None or not all(hasattr(attention, name) for name in _ATTENTION_PARTS):
            return None
        seen: list[torch.Tensor] = []
        hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._module.forward_features(self._normalised(pixels))
        finally:
            hook.remove()
        prefix = int(getattr(self._module, "num_prefix_tokens", 0))
        side = math.isqrt(seen[0].shape[1] - prefix) if seen and prefix else 0
        if not side or side * side != seen[0].shape[1] - prefix:
            return None
        weights = _attention_of_first(attention, seen[0])[:, prefix:]
        weights = weights / weights.sum(dim=1, keepdim=True)
        return np.asarray(weights.view(len(pixels), side, side).float().cpu().numpy())

    def _normalised(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(self._mean).div_(self._std)

    def _no_map(self, why: str) -> PermanentError:
        return PermanentError(
            f"model {self.card.name} gives no map of patch tokens: {why}",
            hint="segmentation needs a network with timm's forward_features",
        )


def _parsed(read_out: str) -> tuple[int, bool]:
    """Blocks whose class tokens are taken (0: the network's own output); whether patches' mean is too."""
    number = re.search(r"\d+", read_out)
    return int(number[0]) if number else 0, read_out.endswith("_mean_patch")


def _attention_of_first(attention: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Softmax weights of the first token over all, [n, tokens], mean over heads; `tokens` [n, tokens, D]."""
    num, length, _ = tokens.shape
    parts = attention.qkv(tokens).reshape(num, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(parts[0][:, :, :1]), attention.k_norm(parts[1])
    weights: torch.Tensor = (attention.scale * query @ key.transpose(-2, -1)).softmax(dim=-1)
    return weights[:, :, 0].mean(dim=1)
