"""Tissue as an image of optical density: nuclei of one class on stroma, under a random stain.

Optical density is -ln(transmitted / incident light), so stains add up (Beer-Lambert); the stain
vectors are those of Ruifrok and Johnston (2001), turned a little for every region.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eosin.demo.synthetic.config import TissueClass

Image = npt.NDArray[np.float32]
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.10, 0.95, 0.30])
_BLOOD = np.array([0.15, 0.75, 0.65])
_MAX_TEMPLATES = 64


@dataclass(frozen=True)
class Stain:
    """How strongly and in which hue one slide or region took the dyes."""

    haematoxylin: float
    eosin: float
    hue_h: tuple[float, float, float]
    hue_e: tuple[float, float, float]
    veil: float
    """Optical density added everywhere: exposure and section thickness."""

    @staticmethod
    def of_slide(rng: np.random.Generator) -> "Stain":
        """A slide's own stain, around the textbook one."""
        return Stain(1.0, 1.0, (0, 0, 0), (0, 0, 0), 0.0).varied(rng, 0.16)

    def varied(self, rng: np.random.Generator, spread: float) -> "Stain":
        """This stain with strengths changed log-normally by `spread` and hues turned in proportion."""
        h_turn, e_turn = rng.normal(0, 0.4 * spread, (2, 3))
        return Stain(
            haematoxylin=float(self.haematoxylin * np.exp(rng.normal(0, spread))),
            eosin=float(self.eosin * np.exp(rng.normal(0, spread))),
            hue_h=_added(self.hue_h, h_turn),
            hue_e=_added(self.hue_e, e_turn),
            veil=float(self.veil + rng.uniform(0, 0.3 * spread)),
        )

    def matrix(self) -> npt.NDArray[np.float32]:
        """(3 RGB, 3 dyes) float32: optical density of one unit of haematoxylin, eosin, blood."""
        h = self.haematoxylin * _unit(_HAEMATOXYLIN + self.hue_h)
        e = self.eosin * _unit(_EOSIN + self.hue_e)
        blood = self.eosin * _unit(_BLOOD + self.hue_e)
        return np.stack([h, e, blood], axis=1).astype(np.float32)


def draw_tissue(
    width_px: int, height_px: int, mpp: float, tissue: TissueClass, stain: Stain, rng: np.random.Generator
) -> Image:
    """Optical density of one region, (height_px, width_px, 3 RGB) float32, at `mpp` µm a pixel."""
    angle = float(rng.uniform(0, np.pi))
    gaps = _gaps(width_px, height_px, mpp, rng)
    nuclei = _nuclei(gaps, mpp, tissue, angle, rng)
    cytoplasm = _smoothed(nuclei, 3.0 / mpp)
    fibres = _fibres(width_px, height_px, mpp, angle, rng)
    clouds = _noise(width_px, height_px, 60.0 / mpp, rng)
    strength = rng.uniform(0.02, 0.07)
    eosin = np.clip(0.40 + strength * fibres + 0.05 * clouds + 0.15 * cytoplasm, 0.03, None) * (1 - gaps)
    ground = rng.uniform(0.03, 0.14)
    haematoxylin = np.maximum(nuclei, ground * (1 + 0.3 * clouds) * (1 - gaps))
    blood = _blood(width_px, height_px, mpp, rng) * (1 - cv2.min(nuclei, 1.0))
    dyes = cv2.merge([haematoxylin, eosin, blood])
    density: Image = cv2.transform(dyes, stain.matrix())
    return cv2.max(density + np.float32(stain.veil), 0.0)  # type: ignore[no-any-return]  # cv2 has no types


def _nuclei(gaps: Image, mpp: float, tissue: TissueClass, angle: float, rng: np.random.Generator) -> Image:
    """Haematoxylin in nuclei, 0 elsewhere, the shape of `gaps`; none stands where a gap is."""
    height_px, width_px = gaps.shape
    xs, ys = _centres(width_px, height_px, mpp, tissue, angle, rng)
    bank = _nucleus_bank(int(np.clip(len(xs) // 2, 12, _MAX_TEMPLATES)), tissue, mpp, angle, rng)
    side = bank.shape[1]
    margin = side // 2
    touching = (xs > -margin) & (xs < width_px + margin) & (ys > -margin) & (ys < height_px + margin)
    xs, ys = xs[touching], ys[touching]
    free = gaps[np.clip(ys, 0, height_px - 1), np.clip(xs, 0, width_px - 1)] < 0.5
    xs, ys = xs[free] + side - margin, ys[free] + side - margin
    which = rng.integers(0, len(bank), len(xs))
    gain = (rng.uniform(0.9, 1.25) * np.exp(rng.normal(0, 0.12, len(xs)))).astype(np.float32)
    canvas = np.zeros((height_px + 2 * side, width_px + 2 * side), np.float32)
    for x, y, template, strength in zip(xs.tolist(), ys.tolist(), which.tolist(), gain, strict=True):
        target = canvas[y : y + side, x : x + side]
        np.maximum(target, bank[template] * strength, out=target)
    return np.ascontiguousarray(canvas[side:-side, side:-side])


def _centres(
    width_px: int, height_px: int, mpp: float, tissue: TissueClass, angle: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Nucleus centres (x, y) in pixels, also beyond the region: a jittered grid along `angle`, thinned."""
    kept = 0.8
    area_px = np.pi / 4 * (tissue.diameter_um / mpp) ** 2
    pitch = float(np.sqrt(kept * area_px / tissue.area_fraction))
    stretch = tissue.aspect**0.35
    reach = float(np.hypot(width_px, height_px)) / 2 + pitch
    along = np.arange(-reach, reach, pitch * stretch)
    across = np.arange(-reach, reach, pitch / stretch)
    u, v = (grid.ravel() for grid in np.meshgrid(along, across))
    u = u + rng.uniform(-0.5, 0.5, u.size) * pitch * stretch + rng.uniform(0, pitch * stretch)
    v = v + rng.uniform(-0.42, 0.42, v.size) * pitch / stretch
    x = np.rint(width_px / 2 + u * np.cos(angle) - v * np.sin(angle)).astype(np.int64)
    y = np.rint(height_px / 2 + u * np.sin(angle) + v * np.cos(angle)).astype(np.int64)
    chosen = rng.random(u.size) < kept
    return x[chosen], y[chosen]


def _nucleus_bank(num: int, tissue: TissueClass, mpp: float, angle: float, rng: np.random.Generator) -> Image:
    """`num` nuclei (num, side, side) float32: soft outline, darker rim, clumped chromatin, nucleoli."""
    diameter = tissue.diameter_um / mpp * np.exp(rng.normal(0, 0.08, num))
    aspect = np.maximum(tissue.aspect * np.exp(rng.normal(0, 0.10, num)), 1.0)
    long_axis = _each(diameter * np.sqrt(aspect) / 2)
    short_axis = _each(diameter / np.sqrt(aspect) / 2)
    turn = _each(angle + rng.normal(0, 0.15, num))
    half = int(np.ceil(long_axis.max() * 1.2)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    u = (x * np.cos(turn) + y * np.sin(turn)) / long_axis
    v = (y * np.cos(turn) - x * np.sin(turn)) / short_axis
    radius = np.hypot(u, v) / _outline(np.arctan2(v, u), rng)
    softness = np.float32(0.9 / mpp)
    body = np.clip((1 - radius) * short_axis / softness + np.float32(0.5), 0, 1)
    rim = np.exp(-(((radius - np.float32(0.86)) / np.float32(0.14)) ** 2))
    inside = np.float32(0.28) * rim + _chromatin(num, 2 * half + 1, mpp, rng) + _nucleoli(u, v, rng)
    return np.asarray(body * np.clip(inside + np.float32(0.62), 0.25, 1.7), np.float32)


def _outline(phi: Image, rng: np.random.Generator) -> Image:
    """Radius of each template's outline by angle, around 1."""
    radius = np.ones_like(phi)
    for wave, height in ((2, 0.04), (3, 0.05), (5, 0.025)):
        size, shift = _each(rng.normal(0, height, len(phi))), _each(rng.uniform(0, 2 * np.pi, len(phi)))
        radius += size * np.cos(np.float32(wave) * phi + shift)
    return radius


def _chromatin(num: int, side: int, mpp: float, rng: np.random.Generator) -> Image:
    clumps = _noise(side, num * side, 0.7 / mpp, rng).reshape(num, side, side)
    return clumps * _each(rng.uniform(0.10, 0.24, num))


def _nucleoli(u: Image, v: Image, rng: np.random.Generator) -> Image:
    """A dark dot off the centre of some nuclei; `u`, `v` are in half axes."""
    num = len(u)
    strength = 0.45 * (rng.random(num) < rng.uniform(0.2, 0.7))
    du, dv = rng.uniform(-0.4, 0.4, (2, num))
    spot = np.exp(-(((u - _each(du)) / np.float32(0.2)) ** 2 + ((v - _each(dv)) / np.float32(0.25)) ** 2))
    return spot * _each(strength)


def _each(values: npt.NDArray[np.floating]) -> Image:
    """One float32 value a template, ready to broadcast over its pixels."""
    return np.asarray(values, np.float32)[:, None, None]


def _fibres(width_px: int, height_px: int, mpp: float, angle: float, rng: np.random.Generator) -> Image:
    """Wavy fibres along `angle`, mean 0 and standard deviation about 1."""
    half = (-(-width_px // 2), -(-height_px // 2))
    thickness = rng.uniform(0.5, 1.1) / (2 * mpp)
    noise = _noise(*half, thickness, rng)
    length = max(3, int(12 / (2 * mpp))) | 1
    kernel = np.zeros((length, length), np.float32)
    reach = (length // 2) * np.array([np.cos(angle), np.sin(angle)])
    centre = np.array([length // 2, length // 2])
    ends = [tuple(int(value) for value in np.rint(centre + sign * reach)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1)
    streaks = _standard(cv2.filter2D(noise, -1, kernel / kernel.sum()))
    wave_px = 25.0 / (2 * mpp)
    x, y = np.meshgrid(np.arange(half[0], dtype=np.float32), np.arange(half[1], dtype=np.float32))
    shift = 0.16 * wave_px * _noise(*half, wave_px, rng)
    wavy = cv2.remap(streaks, x - np.float32(np.sin(angle)) * shift, y + np.float32(np.cos(angle)) * shift,
                     cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    return cv2.resize(wavy, (width_px, height_px), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]  # cv2 has no types


def _gaps(width_px: int, height_px: int, mpp: float, rng: np.random.Generator) -> Image:
    """Clefts and lumens in [0, 1]; how many is chance, whatever the class."""
    field = _noise(width_px, height_px, 14.0 / mpp, rng)
    threshold = rng.uniform(2.1, 3.4)
    return np.clip((field - np.float32(threshold)) * 4, 0, 1)  # type: ignore[no-any-return]  # numpy's stubs lose the dtype


def _blood(width_px: int, height_px: int, mpp: float, rng: np.random.Generator) -> Image:
    """A few red blood cells, 6 to 8 µm across, in [0, 1]."""
    canvas = np.zeros((height_px, width_px), np.float32)
    num = rng.poisson(rng.choice([0, 0, 40, 120]) * width_px * height_px * mpp**2 / 1e6)
    for x, y, radius in zip(rng.integers(0, width_px, num), rng.integers(0, height_px, num),
                            rng.uniform(3.0, 4.0, num) / mpp, strict=True):  # fmt: skip
        cv2.circle(canvas, (int(x), int(y)), round(radius), 0.7, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 0.4 / mpp) if num else canvas


def _noise(width_px: int, height_px: int, scale_px: float, rng: np.random.Generator) -> Image:
    """Smooth noise (height_px, width_px), standard deviation 1, structures about `scale_px` wide.

    Drawn on a grid of half that pitch and enlarged, so that coarse noise costs nothing.
    """
    step = max(1.0, scale_px / 2)
    small = (max(4, round(width_px / step) + 2), max(4, round(height_px / step) + 2))
    field = rng.standard_normal((small[1], small[0]), dtype=np.float32)
    field = _standard(cv2.GaussianBlur(field, (0, 0), max(0.5, scale_px / step / 2)))
    if small == (width_px, height_px):
        return field
    return cv2.resize(field, (width_px, height_px), interpolation=cv2.INTER_CUBIC)  # type: ignore[no-any-return]  # cv2 has no types


def _smoothed(image: Image, sigma_px: float) -> Image:
    """Gaussian blur by way of a quarter of the resolution."""
    height_px, width_px = image.shape
    small = cv2.resize(image, (max(1, width_px // 4), max(1, height_px // 4)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(0.3, sigma_px / 4))
    return cv2.resize(small, (width_px, height_px), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]  # cv2 has no types


def _standard(image: Image) -> Image:
    return (image - image.mean()) / max(float(image.std()), 1e-6)  # type: ignore[no-any-return]  # numpy's stubs lose the dtype


def _added(hue: tuple[float, float, float], turn: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    r, g, b = (float(old + new) for old, new in zip(hue, turn, strict=True))
    return r, g, b


def _unit(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    positive = np.clip(vector, 0.02, None)
    return positive / np.linalg.norm(positive)  # type: ignore[no-any-return]  # numpy's stubs lose the dtype
