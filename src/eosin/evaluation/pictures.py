"""Pictures that a task shows beside its figures: neighbours, maps of tokens, segmented patches."""

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset, MissingImage
from eosin.evaluation.datasets.masks import IGNORE, Classes
from eosin.evaluation.embeddings.embed import Embeddings, Features
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.embeddings.tokens import Pixels
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.transform import BadImage, load_image

MAX_BYTES = 300_000
CELL_PX = 112
_GAP_PX = 6
_QUALITIES = (88, 75, 60, 45)

Color = tuple[int, int, int]


def sheet(
    rows: Sequence[Sequence[Pixels]],
    frames: Sequence[Sequence[Color | None]] | None = None,
    *,
    cell_px: int = CELL_PX,
) -> bytes:
    """JPEG of cells [h, w, 3] resized to squares; `frames` gives some of them a coloured border.

    At most `MAX_BYTES`: the quality falls, then the picture shrinks, until it fits.
    """
    step = cell_px + _GAP_PX
    width = max(len(row) for row in rows) * step - _GAP_PX
    picture = Image.new("RGB", (width, len(rows) * step - _GAP_PX), "white")
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            corner = j * step, i * step
            picture.paste(Image.fromarray(cell).resize((cell_px, cell_px), Image.Resampling.BILINEAR), corner)
            color = frames[i][j] if frames else None
            if color:
                box = (*corner, corner[0] + cell_px - 1, corner[1] + cell_px - 1)
                draw.rectangle(box, outline=color, width=4)
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= MAX_BYTES:
                return buffer.getvalue()
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))


_PANEL_PX = 180
_OPACITY = 0.55
_GOLDEN = 0.618034
# Class 1, most often the only one painted, is then green: far from haematoxylin and eosin.
_FIRST_HUE = 0.712
_GREY = (128, 128, 128)

Row = tuple[Pixels, Classes, Classes]
"""Pixels [side, side, 3], true and predicted classes [side, side]."""


def class_color(index: int) -> tuple[int, int, int]:
    """Red, green, blue of a class; neighbours differ much in hue."""
    red, green, blue = colorsys.hsv_to_rgb((_FIRST_HUE + index * _GOLDEN) % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def panel(rows: Sequence[Row], background: int | None) -> bytes:
    """JPEG with a line of patch, truth and prediction for each of `rows`; background is left bare.

    Pixels that are not judged are grey in truth and prediction.
    """
    cells = []
    for pixels, truth, predicted in rows:
        shown = np.where(truth == IGNORE, IGNORE, predicted).astype(np.uint8)
        cells.append((pixels, _painted(pixels, truth, background), _painted(pixels, shown, background)))
    return sheet(cells, cell_px=_PANEL_PX)


def _painted(pixels: Pixels, classes: Classes, background: int | None) -> Pixels:
    painted: npt.NDArray[np.float64] = pixels.astype(np.float64)
    for index in np.unique(classes).tolist():
        if index == background:
            continue
        color = np.array(_GREY if index == IGNORE else class_color(index))
        where = classes == index
        painted[where] = (1 - _OPACITY) * painted[where] + _OPACITY * color
    return np.asarray(painted.round(), dtype=np.uint8)


_NUM_QUERIES, _NUM_NEIGHBOURS = 6, 5
_SAME, _OTHER = (0, 158, 115), (213, 94, 0)
_PERCENTILES = (2, 98)
# More are not looked at: a picture must not cost more than the figures beside it.
_MAX_BANK = 50_000

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """A JPEG, and the sentence under it."""

    kind: str
    jpeg: bytes
    caption: str


def neighbour_examples(
    dataset: Dataset, embeddings: Embeddings, queries: Sequence[int], bank: Sequence[int]
) -> Example | None:
    """A few of `queries` with their nearest of `bank`; both are places in the embeddings.

    Patches of the same patient, and a patch itself, are no neighbours where others are left. None where
    no image can be shown.
    """
    chosen = _spread(queries, _NUM_QUERIES)
    places = np.asarray(bank, dtype=np.int64)[:_MAX_BANK]
    rows: list[list[Pixels]] = []
    frames: list[list[Color | None]] = []
    is_labelled = False
    for query in chosen:
        nearest = _nearest(dataset, embeddings, query, places)
        shown = [int(embeddings.rows[place]) for place in (query, *nearest)]
        images = _images(dataset, shown)
        if images is None or not nearest:
            continue
        labels = [dataset.samples[row].label for row in shown]
        is_labelled |= bool(labels[0])
        rows.append(images)
        frames.append([None, *(_frame(labels[0], label) for label in labels[1:])])
    if not rows:
        return None
    caption = "Each row: a patch, then its nearest neighbours by cosine, the nearest first"
    framed = "; green: of the same class, orange: of another" if is_labelled else ""
    return Example("neighbours", sheet(rows, frames), caption + framed)


def map_examples(dataset: Dataset, embeddings: Embeddings, model: JudgedModel) -> Example | None:
    """A few patches beside the first three principal components of their tokens, and the class token's
    attention; None for a model without a map of tokens."""
    forward = Forward(*model.load())
    places = _spread(range(len(embeddings.rows)), _NUM_QUERIES)
    images = _images(dataset, [int(embeddings.rows[place]) for place in places], forward.img_px)
    if images is None:
        return None
    try:
        tokens = forward.tokens(np.stack(images)).astype(np.float32)
    except PermanentError:
        return None
    attention = forward.class_attention(np.stack(images))
    components = _components(tokens)
    rows = []
    for i, image in enumerate(images):
        row = [image, _enlarged(components[i])]
        rows.append(row if attention is None else [*row, _heat(attention[i])])
    caption = "Each row: a patch, the first three principal components of its tokens as red, green and blue"
    shown = ", where the class token looks in the last block" if attention is not None else ""
    return Example("maps", sheet(rows), caption + shown)


def _spread(places: Sequence[int], num: int) -> list[int]:
    """`num` of them, evenly apart."""
    num = min(num, len(places))
    return [int(places[i * len(places) // num]) for i in range(num)]


def _nearest(dataset: Dataset, embeddings: Embeddings, query: int, bank: Index) -> list[int]:
    others = bank[bank != query]
    patient = dataset.samples[int(embeddings.rows[query])].patient
    if patient:
        strangers = [p for p in others if dataset.samples[int(embeddings.rows[p])].patient != patient]
        others = np.asarray(strangers or others, dtype=np.int64)
    unit = _unit(embeddings.features[others])
    similarity = unit @ _unit(embeddings.features[[query]])[0]
    return [int(others[i]) for i in np.argsort(-similarity, kind="stable")[:_NUM_NEIGHBOURS]]


def _unit(features: Features) -> Features:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def _frame(label: str, other: str) -> Color | None:
    if not label or not other:
        return None
    return _SAME if label == other else _OTHER


def _images(dataset: Dataset, rows: Sequence[int], side_px: int = CELL_PX) -> list[Pixels] | None:
    """Of samples `rows`; None where one of them is gone since it was embedded."""
    images = []
    for data in dataset.read(rows):
        if isinstance(data, MissingImage):
            return None
        try:
            images.append(load_image(data, side_px))
        except BadImage:
            return None
    return images


def _components(tokens: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """First three principal components over all patches together, uint8 [N, h, w, 3]; tokens [N, D, h, w].

    The sign of each is such that it leans to the positive side: a decomposition alone leaves it open.
    """
    num, dim, height, width = tokens.shape
    flat = tokens.transpose(0, 2, 3, 1).reshape(-1, dim).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, ::-1][:, :3]
    scores *= np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)
    shown = np.zeros((len(flat), 3), dtype=np.uint8)
    shown[:, : scores.shape[1]] = _stretched(scores)
    return shown.reshape(num, height, width, 3)


def _heat(attention: npt.NDArray[np.float32]) -> Pixels:
    grey = _stretched(attention.reshape(-1, 1).astype(np.float64)).reshape(attention.shape)
    return _enlarged(cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB))


def _stretched(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Each column between its 2nd and 98th percentile to 0 … 255."""
    low, high = np.percentile(values, _PERCENTILES, axis=0)
    return np.asarray(np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1) * 255, dtype=np.uint8)


def _enlarged(cells: npt.ArrayLike) -> Pixels:
    """Each token as a square of its own."""
    return np.asarray(
        cv2.resize(np.asarray(cells, dtype=np.uint8), (CELL_PX, CELL_PX), interpolation=cv2.INTER_NEAREST)
    )
