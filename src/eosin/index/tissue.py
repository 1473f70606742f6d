"""Tissue against glass, on a small picture of the slide.

Optical density and its spread over the three colours, thresholded by Otsu's method between bounds that
hold where a slide is all tissue or all glass; then pen marks, what is out of focus, specks and pinholes
are removed. A learned model may stand in for the thresholds.
"""

import cv2
import numpy as np
import numpy.typing as npt

from eosin.config.index import TissueConfig
from eosin.index.focus import Focus
from eosin.index.overview import Overview
from eosin.index.tissue_mask import TissueMask
from eosin.index.tissue_model import TissueModel
from eosin.slides.errors import SlideError

Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Shorts = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]

_UNIT = 1000
_BOUNDS = (0.05, 0.16)
# Spread of the optical density over the colours: dust, shadow and black ink have hardly any.
_LEAST_COLOUR = 0.025
_LEAST_COLOUR_SHARE = 0.12
_PLAIN_COLOUR = 0.05
_HSV_SATURATION = 20
# Of the brightest colour: backgrounds measured go up to 18, the darkest folds begin at some 50.
_UNLIT, _UNLIT_LEAST_PX = 36, 5
# A third of the picture is black, and what is lit is of one colour, or dim.
_LEAST_UNLIT_SHARE, _LEAST_PURITY, _LEAST_LIGHT = 0.3, 0.3, 90


def detect_tissue(
    overview: Overview,
    mpp_x: float,
    mpp_y: float,
    config: TissueConfig,
    *,
    model: TissueModel | None = None,
    focus: Focus | None = None,
) -> TissueMask:
    """The tissue mask of an overview; `mpp_x`, `mpp_y` are the slide's level-0 resolution.

    `model` finds the tissue in place of thresholds, and pen marks are its own affair; `focus` tells what
    of the tissue is blurred. Raises `SlideError` (`not-brightfield`).
    """
    refuse_fluorescence(overview.pixels)
    pixel_um2 = overview.pixel_x_px * mpp_x * overview.pixel_y_px * mpp_y
    mask = _found(overview.pixels, config, model)
    if focus is not None:
        mask &= ~focus.blurred(mask, overview.pixel_x_px, overview.pixel_y_px, config.least_detail)
    least = max(1, round(config.min_area_um2 / pixel_um2))
    mask = ~_without_small(~_without_small(mask, least), least)
    return TissueMask.from_array(mask, overview.pixel_x_px, overview.pixel_y_px)


def _found(pixels: Pixels, config: TissueConfig, model: TissueModel | None) -> Bools:
    if model is not None:
        return np.asarray(model.probability(pixels) >= config.onnx_threshold)
    find = _by_density if config.method == "otsu" else _by_saturation
    return _smoothed(find(pixels) & ~pen_marks(pixels) & ~unlit(pixels))


def unlit(pixels: Pixels) -> Bools:
    """Where no light came through: black backgrounds, strips and padding, with their rim.

    The densest stain lets through more than that; a few dark pixels may be pigment and are left alone.
    """
    dark = (_brightest(pixels) < _UNLIT).astype(np.uint8)
    large = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((_UNLIT_LEAST_PX, _UNLIT_LEAST_PX), np.uint8))
    return np.asarray(cv2.dilate(large, np.ones((5, 5), np.uint8)) | dark, bool)


def _brightest(pixels: Pixels) -> Pixels:
    """The largest of each pixel's colours, [h, w]; numpy takes thirty times as long over a short axis."""
    red, green, blue = cv2.split(pixels)
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)


def refuse_fluorescence(pixels: Pixels) -> None:
    """Raises `SlideError` (`not-brightfield`) for a picture that shines on black instead of staining white.

    Stained tissue lets some of every colour through, and most of the light of the slide; what fluoresces is
    of one colour, or dim.
    """
    brightest = _brightest(pixels)
    lit = brightest >= _UNLIT
    if lit.mean() > 1 - _LEAST_UNLIT_SHARE or not lit.any():
        return
    high = brightest[lit].astype(np.float32)
    purity = float(np.median(pixels.min(axis=2)[lit] / high))
    if purity < _LEAST_PURITY or float(np.median(high)) < _LEAST_LIGHT:
        raise SlideError(
            "not-brightfield", "it shines on black, as fluorescence does; tissue stained on white is wanted"
        )


def _by_density(pixels: Pixels) -> Bools:
    """Dense enough and not gray; or plainly coloured, as pale tissue is where no glass is near."""
    mean, colour = _optical_density(pixels)
    threshold = density_threshold(mean)
    gray = (colour < _LEAST_COLOUR * _UNIT) | (colour < _LEAST_COLOUR_SHARE * mean)
    found: Bools = ((mean > threshold * _UNIT) | (colour > _PLAIN_COLOUR * _UNIT)) & ~gray
    return found


def _by_saturation(pixels: Pixels) -> Bools:
    """A fixed threshold on HSV saturation, for comparison with other work."""
    saturation: Pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1]
    return saturation > _HSV_SATURATION


def _optical_density(pixels: Pixels) -> tuple[Shorts, Shorts]:
    """Mean and spread over the colours of -log10(I / I0), [h, w] int16 in thousandths.

    I0 is the glass, where there is enough of it. Whole numbers by table, since a slide's overview has ten
    million pixels and several slides are in flight.
    """
    smooth = cv2.GaussianBlur(pixels, (3, 3), 0)
    levels = np.arange(256, dtype=np.float32) + 1
    tables = [np.maximum(-np.log10(levels / (each + 1)), 0) * _UNIT for each in _glass(pixels)]
    table = np.round(np.stack(tables, axis=1)).astype(np.int16)
    red, green, blue = cv2.split(cv2.LUT(smooth, table[None]))
    mean: Shorts = (red + green + blue) // 3
    colour: Shorts = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    return mean, colour


def _glass(pixels: Pixels) -> Floats:
    """The colour of bare glass: the bright end of the picture if it is colourless, else white."""
    some = pixels.reshape(-1, 1, 3)[:: max(1, pixels.size // 3_000_000)]
    counts = (cv2.calcHist([some], [colour], None, [256], [0, 256]).ravel() for colour in range(3))
    bright = np.array([_bright_end(each) for each in counts])
    colourless = bright.max() - bright.min() < 12 and bright.min() > 180
    return (bright if colourless else np.full(3, 255.0)).astype(np.float32)


def _bright_end(counts: Floats) -> float:
    """The 95th percentile, linear between neighbours, of numbers of which there are `counts`, [256]."""
    ends = np.cumsum(counts, dtype=np.int64)
    place = 0.95 * (ends[-1] - 1)
    below, above = np.searchsorted(ends, np.floor([place, place + 1]), side="right")
    return float(below + (above - below) * (place % 1))


def density_threshold(mean: Shorts) -> float:
    """Otsu's threshold on the mean optical density, kept where tissue and glass really part.

    On a slide of tissue alone Otsu would part dark tissue from pale, on bare glass dust from glass: the
    bounds keep pale tissue in the one case and find nothing in the other.
    """
    scaled = cv2.convertScaleAbs(mean, alpha=255 / _UNIT)
    otsu, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(otsu / 255, *_BOUNDS))


def pen_marks(pixels: Pixels) -> Bools:
    """Where felt pen covers the slide: hues no H&E or DAB stain has, at a saturation none reaches.

    OpenCV's HSV (hue 0–179). A green special stain counts as pen: use `method: saturation` with an
    override for such slides. Black pen has no colour and falls to the colour condition of the density.
    """
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    green = (hue > 35) & (hue < 90) & (saturation > 60)
    blue = (hue >= 90) & (hue < 122) & (saturation > 120)
    red = ((hue < 8) | (hue > 174)) & (saturation > 200) & (value > 120)
    marks = (green | blue | red).astype(np.uint8)
    solid = cv2.morphologyEx(marks, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return np.asarray(cv2.dilate(solid, np.ones((5, 5), np.uint8)), bool)


def _smoothed(mask: Bools) -> Bools:
    """Opened against specks, closed across cracks, in a margin so that the border loses nothing."""
    if min(mask.shape) < 5:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    padded = np.pad(mask.astype(np.uint8), 4, mode="edge")
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, disc)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disc)
    return np.asarray(closed[4:-4, 4:-4], bool)


def _without_small(mask: Bools, least: int) -> Bools:
    """`mask` less its 8-connected parts of fewer than `least` pixels."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.bincount(labels.ravel()) >= least  # boxes and centres, which OpenCV counts with it, take longer
    if keep[1:].all():
        return mask
    keep[0] = False
    kept: Bools = keep[labels]
    return kept
