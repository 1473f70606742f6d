"""Frozen embeddings of a dataset: computed once, stored by digest, shared by all tasks and re-runs."""

import hashlib
import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset, MissingImage
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.transform import TRANSFORM, TRANSFORM_VERSION, BadImage, load_image
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.storage import NotFound, Store, put_if_absent

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]

CHANGES_VERSION = 1

# Optical density of haematoxylin, eosin and the residual, a row each (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], dtype=np.float32)
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS).astype(np.float32)


def rotate(pixels: Pixels) -> Pixels:
    """A quarter turn of [h, w, 3]."""
    return np.ascontiguousarray(np.rot90(pixels))


def flip(pixels: Pixels) -> Pixels:
    """Left to right."""
    return np.ascontiguousarray(pixels[:, ::-1])


def stain(pixels: Pixels) -> Pixels:
    """30 % more haematoxylin and 30 % less eosin: two laboratories."""
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    amounts = (density @ _UNMIX) * np.array([1.3, 0.7, 1.0], dtype=np.float32)
    light = 256 * np.exp(-np.maximum(amounts @ _STAINS, 0)) - 1
    return np.asarray(np.clip(np.round(light), 0, 255), dtype=np.uint8)


def blur(pixels: Pixels) -> Pixels:
    """A Gaussian of one pixel: a scanner slightly out of focus."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 1.0), dtype=np.uint8)


CHANGES: dict[str, Change] = {"rotation": rotate, "flip": flip, "stain": stain, "blur": blur}


_DECODE_THREADS = min(16, max(4, os.cpu_count() or 1))
_MAX_NAMED = 20

Features = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")


class UnreadableImages(PermanentError):
    """None of a dataset's images could be read; `dropped` are the first, with the reason of each."""

    def __init__(self, uri: str, dropped: Sequence[dict[str, str]]) -> None:
        first = dropped[0]
        super().__init__(
            f"none of the {len(dropped)} images of {uri} could be read; "
            f"the first, {first['source']}: {first['reason']}"
        )
        self.num_dropped, self.dropped = len(dropped), tuple(dropped[:_MAX_NAMED])


@dataclass(frozen=True)
class Embeddings:
    """`features` float32 [N, D]; row i belongs to sample `rows[i]` of the dataset."""

    features: Features
    rows: npt.NDArray[np.int64]
    num_dropped: int
    dropped: tuple[dict[str, str], ...]
    """The first of the images that could not be read: source and reason."""
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    """Of each row's encoded bytes, so that the same image under two names is seen; empty where not known."""

    def told(self) -> dict[str, Any]:
        """Fields of `Details` on what was left out, and on how images became pixels."""
        return {
            "num_dropped": self.num_dropped,
            "dropped": self.dropped,
            "transform": f"{TRANSFORM} v{TRANSFORM_VERSION}",
        }

    def rows_by_mpp(self, dataset: Dataset, *, min_samples: int) -> dict[str, list[int]]:
        """Rows of `features` of each magnification with so many samples, finest first; empty for only one."""
        rows: dict[float, list[int]] = defaultdict(list)
        for i, row in enumerate(self.rows.tolist()):
            mpp = dataset.samples[row].mpp
            if mpp is not None:
                rows[mpp].append(i)
        if len(rows) < 2:
            return {}
        return {f"{mpp:g}": rows[mpp] for mpp in sorted(rows) if len(rows[mpp]) >= min_samples}


def embed(
    model: JudgedModel, dataset: Dataset, *, store: Store, batch_size: int, log: RunLog, change: str = ""
) -> Embeddings:
    """The embeddings of every readable image of `dataset`, from the store where they are there already.

    `change`: a name of `CHANGES`, applied to each image before the model sees it; empty: none.

    Several processes may do this at once: all compute the same, the first to publish wins. Raises
    `PermanentError` where no image can be read or an embedding is not finite.
    """
    key = RunLayout.embeddings(_digest(model, dataset, change))
    stored = _load(store, key)
    if stored is not None:
        log.event("embeddings", model=model.name, images=len(stored.rows), source="stored")
        return stored
    made = _compute(model, dataset, batch_size, log, change)
    if not put_if_absent(store, key, _encode(made)):
        log.event("embeddings-shared", key=key, detail="another task published them first")
    return made


def _digest(model: JudgedModel, dataset: Dataset, change: str) -> str:
    identity = [model.digest, dataset.digest, TRANSFORM, TRANSFORM_VERSION, "float32"]
    identity += [change, CHANGES_VERSION] if change else []
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _compute(model: JudgedModel, dataset: Dataset, batch_size: int, log: RunLog, change: str) -> Embeddings:
    from eosin.evaluation.embeddings.forward import Forward

    forward = Forward.of(model)
    features: list[Features] = []
    rows: list[int] = []
    dropped: list[dict[str, str]] = []
    hashes: list[int] = []
    total = len(dataset.samples)

    def decode(data: bytes | MissingImage) -> tuple[int, Pixels] | str:
        image = decode_or_reason(data, forward.img_px)
        if isinstance(data, MissingImage) or isinstance(image, str):
            return str(image)
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return int.from_bytes(digest), CHANGES[change](image) if change else image

    batches = [range(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
    with ThreadPoolExecutor(_DECODE_THREADS) as pool:

        def load(indices: range) -> list[tuple[int, Pixels] | str]:
            return list(pool.map(decode, dataset.read(indices)))

        for indices, loaded in zip(
            batches, in_advance(load, batches, num_threads=1, num_ahead=1), strict=True
        ):
            images = dict(zip(indices, loaded, strict=True))
            good = {i: image for i, image in images.items() if not isinstance(image, str)}
            for i, reason in images.items():
                if isinstance(reason, str):
                    dropped.append({"source": dataset.samples[i].source, "reason": reason})
            if good:
                features.append(forward(np.stack([image for _, image in good.values()])))
                hashes += [each for each, _ in good.values()]
                rows += good
            log.progress(indices[-1] + 1, total, "images", model=model.name)
    if not rows:
        raise UnreadableImages(dataset.uri, dropped)
    matrix = np.concatenate(features)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise PermanentError(
            f"model {model.name}: {len(bad)} of {len(matrix)} embeddings are not finite, "
            f"first that of {dataset.samples[rows[bad[0]]].source}",
            hint="the checkpoint diverged: look at the loss before it, and judge an earlier one",
        )
    return Embeddings(
        matrix,
        np.asarray(rows, dtype=np.int64),
        len(dropped),
        tuple(dropped[:_MAX_NAMED]),
        np.asarray(hashes, dtype=np.uint64),
    )


def in_advance(
    make: Callable[[T], R], parts: Iterable[T], *, num_threads: int, num_ahead: int
) -> Iterator[R]:
    """What `make` makes of each of `parts`, in order, by threads that are so many parts ahead."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for part in parts:
            waiting.append(threads.submit(make, part))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def decode_or_reason(data: bytes | MissingImage, img_px: int) -> Pixels | str:
    """An encoded image at the model's size, [img_px, img_px, 3], or why it cannot be read."""
    if isinstance(data, MissingImage):
        return data.reason
    try:
        return load_image(data, img_px)
    except BadImage as error:
        return str(error)


def _encode(embeddings: Embeddings) -> bytes:
    note = json.dumps({"num_dropped": embeddings.num_dropped, "dropped": embeddings.dropped}).encode()
    return safetensors.numpy.save(
        {
            "features": np.ascontiguousarray(embeddings.features),
            "rows": embeddings.rows,
            "hashes": embeddings.hashes,
            "dropped": np.frombuffer(note, dtype=np.uint8),
        }
    )


def _load(store: Store, key: str) -> Embeddings | None:
    """What is stored, or None where nothing is, or nothing that can be read."""
    try:
        tensors = safetensors.numpy.load(store.get(key))
        note = json.loads(tensors["dropped"].tobytes())
        dropped = tuple(note["dropped"])
        return Embeddings(
            tensors["features"], tensors["rows"], note["num_dropped"], dropped, tensors["hashes"]
        )
    except (NotFound, SafetensorError, ValueError, KeyError):
        return None
