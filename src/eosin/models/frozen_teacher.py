"""A frozen teacher for distillation: a ViT behind the student's crops and patch grid."""

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.config.augment import AugmentConfig
from eosin.config.train import DistillConfig
from eosin.errors import UserError
from eosin.layout import TEACHER_CARD
from eosin.models.arch import OfVit, create_vit, patch_size_of, require_multiple, resolved_arch_args
from eosin.models.init import RUN_PREFIX, TIMM_PREFIX
from eosin.models.timm_model import load_timm
from eosin.models.weights import HUB_PREFIX, require_timm_weights
from eosin.records import TeacherCard, load_record
from eosin.runs import load_run
from eosin.storage import open_store

WHAT = "train.distill.teacher"
Colour = tuple[float, float, float]


class Untrained(NamedTuple):
    """A teacher's network, and the mean and standard deviation by which it wants images normalised."""

    vit: Any
    mean: Colour
    std: Colour


def untrained_teacher(name: str, *, meta: bool = False) -> Untrained:
    """The network of the teacher called `name` (`train.distill.teacher`), its weights not yet loaded.

    Reads a card, a run's configuration or a hub's; of timm's models the names alone. Raises `UserError` where
    there is no such teacher or it has no class token.
    """
    with torch.device("meta" if meta else "cpu"):
        found = _untrained(name)
    if getattr(found.vit, "cls_token", None) is None or not hasattr(found.vit, "blocks"):
        raise UserError(
            f"{WHAT} {name} is no ViT with a class token",
            hint="name one such as timm:vit_large_patch14_reg4_dinov2.lvd142m",
        )
    return found


@functools.lru_cache(maxsize=4)
def teacher_shape(name: str) -> Untrained:
    """As `untrained_teacher`, on the meta device, looked up once a process."""
    return untrained_teacher(name, meta=True)


def _untrained(name: str) -> Untrained:
    if name.startswith(RUN_PREFIX):
        config = load_run(name.removeprefix(RUN_PREFIX))
        args = resolved_arch_args(config.model, config.augment.global_px)
        return Untrained(create_vit(config.model.arch, args), config.augment.mean, config.augment.std)
    if name.startswith((TIMM_PREFIX, HUB_PREFIX)):
        arch, _, uri = name.removeprefix(TIMM_PREFIX).partition("@")
        if not uri and not arch.startswith(HUB_PREFIX):
            require_timm_weights(arch)
        module, card = load_timm(arch, pretrained=False)
        return Untrained(module, card.mean, card.std)
    found = load_record(TeacherCard, open_store(name), TEACHER_CARD)
    if found is None:
        raise UserError(
            f"{WHAT}: no teacher at {name}: {TEACHER_CARD} is not there",
            hint="name the folder of an export, s3://bucket/runs/NAME/teachers/step-00000100, run:URI or"
            " timm:NAME; weights in timm's layout without a card: timm:ARCH@URI",
        )
    return Untrained(create_vit(found.arch, found.arch_args), found.mean, found.std)


class FrozenTeacher(OfVit):
    """Class and patch tokens of the student's global crops as a teacher sees them, on the student's grid."""

    scale: Tensor
    shift: Tensor
    digest: Tensor
    """uint8 [32]: SHA-256 of the weights; part of every checkpoint."""

    def __init__(self, found: Untrained, augment: AugmentConfig, side_px: int, grid: int) -> None:
        """`side_px`: of the image the teacher sees; `grid`: patches along a side of the student's crop."""
        super().__init__()
        self.vit = found.vit.eval().requires_grad_(False)
        self.side_px, self._grid = side_px, grid
        own_mean, own_std, mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (augment.mean, augment.std, found.mean, found.std)
        )
        # From the crops' normalisation to the teacher's.
        self.register_buffer("scale", own_std / std, persistent=False)
        self.register_buffer("shift", (own_mean - mean) / std, persistent=False)
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8), persistent=False)

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Class and patch tokens [n, 1 + grid², dim] of crops [n, 3, G, G], normalised for the student.

        Patch tokens of another grid are resampled (bicubic, antialiased).
        """
        images = crops * self.scale + self.shift
        if images.shape[-1] != self.side_px:
            images = _resized(images, self.side_px)
        tokens: Tensor = self.vit.forward_features(images)
        patches = resample_grid(tokens[:, self.num_prefix_tokens :], self._grid)
        return torch.cat([tokens[:, :1], patches], dim=1)


def resample_grid(patches: Tensor, grid: int, *, antialias: bool = True) -> Tensor:
    """[n, grid², dim] of patch tokens [n, side², dim], row-major; as they are where the grids are alike."""
    side = math.isqrt(patches.shape[1])
    if side == grid:
        return patches
    maps = patches.transpose(1, 2).unflatten(2, (side, side))
    return _resized(maps, grid, antialias=antialias).flatten(2).transpose(1, 2).to(patches.dtype)


def _resized(maps: Tensor, side: int, *, antialias: bool = True) -> Tensor:
    return F.interpolate(maps.float(), size=(side, side), mode="bicubic", antialias=antialias)


def frozen_teacher(
    distill: DistillConfig, augment: AugmentConfig, found: Untrained, student_patch_size: int
) -> FrozenTeacher:
    """The teacher `found` behind the student's crops. Raises `UserError`, with the arithmetic, where its
    image is no whole number of patches."""
    side_px = distill.teacher_px or augment.global_px
    name = "train.distill.teacher_px" if distill.teacher_px else f"augment.global_px, which {WHAT} sees,"
    require_multiple(side_px, patch_size_of(found.vit), name)
    return FrozenTeacher(found, augment, side_px, augment.global_px // student_patch_size)
