"""Multi-crop views of a batch of patches, on whatever device the batch lies.

Every draw of a sample is a pure function of (seed, step, sample index): a batch may be split, shuffled
or moved to another worker and each sample's crops stay the same. On one CPU build the bits are equal;
another device or thread count rounds differently in the last place.

Order: crop, resize and flip with blur, stain, colour, solarise, normalise. The blur comes before the
colours, unlike in DINO's transform; but for clamping the two commute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.config.augment import AugmentConfig, Scale
from eosin.config.train import GramConfig
from eosin.patches.sampling.counter_rng import Float64, normals, uniforms

LUMA: Float64 = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# Optical densities of haematoxylin and eosin (Ruifrok and Johnston 2001), and what is normal to both.
_H = np.array([0.650, 0.704, 0.286])
_E = np.array([0.072, 0.990, 0.105])
_STAINS: Float64 = np.stack([v / np.linalg.norm(v) for v in (_H, _E, np.cross(_H, _E))])
_MIN_INTENSITY = 1.0 / 255.0


def jitter_matrices(gain: Float64, saturation: Float64, turns: Float64, gray: Float64) -> Float64:
    """Float64 [m, 3, 3] for RGB columns: gain, then saturation, then hue, then grey where `gray` is 1.

    All arguments [m]. `gain` is brightness × contrast; `turns` turns the hue in the plane of I and Q,
    in whole turns.
    """
    identity: Float64 = np.eye(3)
    luma: Float64 = np.tile(LUMA, (3, 1))
    s, g = saturation[:, None, None], gray[:, None, None]
    saturate = s * identity + (1.0 - s) * luma
    grayscale = (1.0 - g) * identity + g * luma
    return np.asarray(gain[:, None, None] * (grayscale @ _hue_matrices(turns) @ saturate))


def stain_matrices(strength: Float64) -> Float64:
    """Float64 [m, 3, 3] for optical densities: stain k of crop i is multiplied by strength[i, k]."""
    return np.asarray((_STAINS.T * strength[:, None, :]) @ np.linalg.inv(_STAINS.T))


def stain_offsets(amount: Float64) -> Float64:
    """Float64 [m, 3]: optical density added to R, G, B for `amount` [m, 3] more of each stain."""
    return np.asarray(amount @ _STAINS)


def apply_stain(crops: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Crops float32 [m, 3, h, w] in [0, 1] with `matrices` [m, 3, 3], `offsets` [m, 3] applied to −log."""
    density = crops.clamp(min=_MIN_INTENSITY).log_().flatten(2)
    return torch.baddbmm(-offsets[:, :, None], matrices, density).exp_().clamp_(max=1.0).view_as(crops)


def apply_jitter(crops: Tensor, matrices: Tensor, gray_share: Tensor) -> Tensor:
    """Crops float32 [m, 3, h, w] in [0, 1] with `matrices` applied, clamped to [0, 1].

    `gray_share` [m] is (1 − contrast) × brightness: contrast mixes in so much of the crop's mean luma.
    """
    flat = crops.flatten(2)
    # Not made on the device, which would wait for all that it was asked to do before.
    luma = torch.from_numpy(LUMA).to(crops.dtype).to(crops.device, non_blocking=True)
    offset = gray_share * (flat.mean(-1) * luma).sum(-1)
    return torch.baddbmm(offset[:, None, None], matrices, flat).clamp_(0.0, 1.0).view_as(crops)


def _hue_matrices(turns: Float64) -> Float64:
    angle = 2.0 * np.pi * turns
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.asarray(np.linalg.inv(_YIQ) @ turn @ _YIQ)


def axis_matrices(
    start_px: Tensor, length_px: Tensor, flip: Tensor, sigma_px: Tensor, in_px: int, out_px: int
) -> Tensor:
    """Float32 [m, out_px, in_px]: row i holds the weights of the input pixels in output pixel i.

    `start_px`, `length_px` [m]: the crop's interval on this axis, in input pixels; `flip` [m] bool;
    `sigma_px` [m]: blur in output pixels, 0 for none. The resize is Keys' cubic (1981) with a = −0.5, as wide
    as the larger of the two pixels: the antialiased bicubic of Pillow and torch, by which DINO and DINOv2
    resize their crops. Rows sum to 1; some weights are negative, so what comes of them is to be clamped.
    """
    inputs = torch.arange(in_px, device=start_px.device, dtype=torch.float32) + 0.5
    outputs = torch.arange(out_px, device=start_px.device, dtype=torch.float32) + 0.5
    scale = (length_px / out_px)[:, None, None]
    places = torch.where(flip[:, None], out_px - outputs, outputs)
    centers = start_px[:, None, None] + places[:, :, None] * scale
    resize = _cubic((inputs - centers).abs() / scale.clamp(min=1.0))
    resize = resize / resize.sum(-1, keepdim=True)
    return torch.bmm(_blur_matrices(sigma_px, out_px), resize)


def views(
    patches: Tensor, rows: Tensor, columns: Tensor, num_views: int
) -> Tensor:  # fmt: skip
    """Float32 [num_views, n, 3, out, out] from `patches` float32 [n, H, W, 3].

    `rows`, `columns` [num_views * n, out, H or W], view-major, from `axis_matrices`.
    """
    n, height, width, _ = patches.shape
    out_px = rows.shape[1]
    by_sample = rows.view(num_views, n, out_px, height).transpose(0, 1).reshape(n, -1, height)
    narrow = torch.bmm(by_sample, patches.reshape(n, height, width * 3))
    narrow = narrow.view(n, num_views, out_px, width, 3).permute(1, 0, 4, 2, 3)
    flat = narrow.reshape(num_views * n, 3 * out_px, width)
    return torch.bmm(flat, columns.transpose(1, 2)).view(num_views, n, 3, out_px, out_px)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = −0.5 at `distance` ≥ 0: 1 at 0, 0 from 2 on."""
    # The two pieces of the kernel, in powers of what is left of 2 and of 1: few passes over a large tensor.
    left = (2.0 - distance).clamp_(min=0.0)
    inner = (left - 1.0).clamp_(min=0.0)
    far = (left - 1.0).mul_(0.5).mul_(left.square_())
    return far.addcmul_(inner.square(), inner.mul_(-2.0).add_(1.0))


def _blur_matrices(sigma_px: Tensor, side_px: int) -> Tensor:
    """Float32 [m, side_px, side_px]: Gaussian weights, rows summing to 1; the identity where sigma is 0."""
    place = torch.arange(side_px, device=sigma_px.device, dtype=torch.float32)
    distance = place[None, :] - place[:, None]
    # The floors keep out a division by 0 and denormal weights, which cost more time than all the rest;
    # what they add is below 1e-13.
    exponent = -0.5 * (distance / sigma_px.clamp(min=0.05)[:, None, None]) ** 2
    weights = torch.exp(exponent.clamp(min=-30.0))
    return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Crops:
    """Normalised float32 views: `global_crops` [2, n, 3, G, G], `local_crops` [num_local, n, 3, L, L];
    `clean_crops` [2, n, 3, C, C], what the global crops show, neither blurred nor with other colours."""

    global_crops: Tensor
    local_crops: Tensor
    clean_crops: Tensor | None = None


@dataclass(frozen=True)
class _Draws:
    """What is drawn for m = num_views × n crops, view-major; all float64."""

    top: Float64
    left: Float64
    height: Float64
    width: Float64
    """The crop in patch pixels, each [m]."""
    flips: Float64
    """[m, 3], 0 or 1: top-down, left-right, transposed."""
    sigma_px: Float64
    stain: Float64
    """[m, 6]: a factor and an amount for each stain."""
    jitter: Float64
    """[m, 3, 3], applied to RGB."""
    gray_share: Float64
    solarize: Float64


def sizes_at(config: AugmentConfig, seed: int, step: int) -> AugmentConfig:
    """`config` with the sizes of all crops of `step`: a pure function of (seed, step)."""
    shares, variants = zip(*config.variants(), strict=True)
    drawn = uniforms(seed, "crop sizes", step, [0], 1)[0, 0]
    # Rounding may leave the sum of the shares a little below 1.
    place = np.searchsorted(np.cumsum(shares)[:-1], drawn, side="right")
    found: AugmentConfig = variants[int(place)]
    return found


_NO_GRAM = GramConfig()


class MultiCrop:
    """Two global and `config.num_local` local crops a patch, of sizes that may change from step to step.

    Costs about 40 ms for 32 patches of 96 px into 2 × 64 + 4 × 32 px on one CPU core; nothing is drawn or
    computed in a loop over samples.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        seed: int,
        patch_px: int,
        device: str | torch.device = "cpu",
        gram: GramConfig = _NO_GRAM,
    ) -> None:
        """`gram`: for whose teacher `Crops.clean_crops` are made, if for any."""
        self._gram = gram
        self.config = config
        self.seed = seed
        self.patch_px = patch_px
        self.device = torch.device(device)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (config.mean, config.std)
        )

    @torch.no_grad()
    def __call__(self, pixels: Tensor, step: int, indices: Sequence[int]) -> Crops:
        """Crops of `pixels` uint8 [n, patch_px, patch_px, 3], samples `indices` of training step `step`.

        Raises ValueError where the shapes do not fit.
        """
        if pixels.shape != (len(indices), self.patch_px, self.patch_px, 3) or pixels.dtype != torch.uint8:
            raise ValueError(
                f"pixels must be uint8 [{len(indices)}, {self.patch_px}, {self.patch_px}, 3], "
                f"not {pixels.dtype} {list(pixels.shape)}"
            )
        config = sizes_at(self.config, self.seed, step)
        clean_px = self._gram.crop_px(config.global_px)
        patches = pixels.to(self.device, non_blocking=True).float().div_(255.0)
        return Crops(
            self._crops(patches, step, indices, range(2), config.global_px, config.global_scale),
            self._crops(patches, step, indices, range(2, 2 + config.num_local), config.local_px,
                        config.local_scale),
            self._crops(patches, step, indices, range(2), clean_px, config.global_scale, clean=True)
            if clean_px and step >= self._gram.start_step else None,
        )  # fmt: skip

    def _crops(
        self,
        patches: Tensor,
        step: int,
        indices: Sequence[int],
        view_ids: range,
        out_px: int,
        scale: Scale,
        *,
        clean: bool = False,
    ) -> Tensor:
        n = len(indices)
        if not view_ids or not n:
            return torch.empty((len(view_ids), n, 3, out_px, out_px), device=self.device)
        drawn = self._draw(step, indices, view_ids, scale)
        sigma = self._tensor(drawn.sigma_px * (not clean))
        flips = self._tensor(drawn.flips) > 0
        rows = axis_matrices(self._tensor(drawn.top), self._tensor(drawn.height), flips[:, 0], sigma,
                             self.patch_px, out_px)  # fmt: skip
        columns = axis_matrices(self._tensor(drawn.left), self._tensor(drawn.width), flips[:, 1], sigma,
                                self.patch_px, out_px)  # fmt: skip
        crops = views(patches, rows, columns, len(view_ids)).flatten(0, 1).clamp_(0.0, 1.0)
        crops = torch.where(flips[:, 2, None, None, None], crops.transpose(2, 3), crops)
        crops = crops if clean else self._colored(crops, drawn)
        return crops.sub_(self._mean).div_(self._std).view(len(view_ids), n, 3, out_px, out_px)

    def _colored(self, crops: Tensor, drawn: _Draws) -> Tensor:
        if self.config.stain_jitter:
            matrices = self._tensor(stain_matrices(drawn.stain[:, :3]))
            offsets = self._tensor(stain_offsets(drawn.stain[:, 3:]))
            crops = apply_stain(crops, matrices, offsets)
        crops = apply_jitter(crops, self._tensor(drawn.jitter), self._tensor(drawn.gray_share))
        if drawn.solarize.any():
            chosen = self._tensor(drawn.solarize)[:, None, None, None] > 0
            crops = torch.where(chosen & (crops >= 0.5), 1.0 - crops, crops)
        return crops

    def _tensor(self, values: Float64) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device, non_blocking=True)

    def _draw(self, step: int, indices: Sequence[int], view_ids: range, scale: Scale) -> _Draws:
        u = np.concatenate(
            [uniforms(self.seed, f"crop{view}", step, indices, _NUM_DRAWS) for view in view_ids]
        )
        view = np.repeat(np.array(view_ids), len(indices))
        height, width = _box(u[:, 0], u[:, 1], scale, self.config.max_aspect, self.patch_px)
        jitter, gray_share = self._jitter(u[:, _JITTER])
        return _Draws(
            top=u[:, 2] * (self.patch_px - height),
            left=u[:, 3] * (self.patch_px - width),
            height=height,
            width=width,
            flips=(u[:, 4:7] < 0.5).astype(np.float64) * self.config.rotate,
            sigma_px=self._blur(u[:, 7], u[:, 8], view),
            stain=self._stain(u[:, _STAIN]),
            jitter=jitter,
            gray_share=gray_share,
            solarize=(u[:, 9] < self.config.solarize) * (view == 1).astype(np.float64),
        )

    def _blur(self, chance: Float64, place: Float64, view: npt.NDArray[np.int64]) -> Float64:
        low, high = self.config.blur_sigma_px
        probability = np.array(self.config.blur)[np.minimum(view, 2)]
        return np.asarray((chance < probability) * (low + place * (high - low)))

    def _jitter(self, u: Float64) -> tuple[Float64, Float64]:
        """RGB matrices [m, 3, 3] and gray shares [m] from uniforms [m, 6]."""
        config = self.config
        on = (u[:, 0] < config.color_jitter).astype(np.float64)
        spread = on[:, None] * (2.0 * u[:, 1:5] - 1.0)
        brightness, contrast = 1.0 + config.brightness * spread[:, 0], 1.0 + config.contrast * spread[:, 1]
        saturation, turns = 1.0 + config.saturation * spread[:, 2], config.hue * spread[:, 3]
        gray = (u[:, 5] < config.grayscale).astype(np.float64)
        matrices = jitter_matrices(brightness * contrast, saturation, turns, gray)
        return matrices, (1.0 - contrast) * brightness

    def _stain(self, u: Float64) -> Float64:
        """Factors [m, 3] beside amounts [m, 3] from uniforms [m, 12]."""
        jitter = self.config.stain_jitter * normals(u[:, :6], u[:, 6:])
        return np.asarray(jitter + np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))


_JITTER = slice(10, 16)
_STAIN = slice(16, 28)
_NUM_DRAWS = 28


def _box(
    area: Float64, aspect: Float64, scale: Scale, max_aspect: float, side_px: int
) -> tuple[Float64, Float64]:
    """Height and width of a crop in pixels, [m] each, from uniforms.

    The area is uniform in `scale`; the log of the aspect is uniform between ± that of `max_aspect`, cut to
    what fits, so that a large crop is never redrawn and the area's distribution is exact.
    """
    share = scale[0] + area * (scale[1] - scale[0])
    limit = np.minimum(np.log(max_aspect), -np.log(share))
    root = np.exp(0.5 * (2.0 * aspect - 1.0) * limit)
    side = np.sqrt(share) * side_px
    return np.minimum(side / root, side_px), np.minimum(side * root, side_px)
