"""Embeddings of the patches of each slide: stored slide by slide, never all in memory."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from PIL import Image
from safetensors import SafetensorError

from eosin.errors import PermanentError
from eosin.evaluation.embeddings.embed import Features
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.embeddings.slide_patches import SlidePlan
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.transform import TRANSFORM, TRANSFORM_VERSION, fit
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.request import PatchRequest
from eosin.patches.stream import GuardedReader, num_cores, open_reader
from eosin.slides.errors import SlideError
from eosin.storage import NotFound, Store

_BATCHES_AHEAD = 3
_PATCHES_PER_TASK = 32
_MAX_NAMED = 20

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Bags:
    """Embeddings of all patches in one file on disk, slide after slide.

    Slide `rows[i]` of the dataset has the patches `starts[i]` to `starts[i + 1]` of `features` [N, D].
    """

    features: Features
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    num_dropped: int
    dropped: tuple[dict[str, str], ...]
    """The first of the slides left out: source and reason."""

    @property
    def num_patches(self) -> int:
        """Over all slides."""
        return int(self.starts[-1])


def embed_slides(
    model: JudgedModel, plan: SlidePlan, *, store: Store, folder: Path, batch_size: int, log: RunLog
) -> Bags:
    """Embeddings of every slide of `plan`, from the store where they are there; laid out in `folder`.

    A slide is published whole as soon as it is done, so a killed evaluation goes on with the next one.
    Memory holds one slide. Raises `PermanentError` where no slide gives a patch, or an embedding is not
    finite.
    """
    digest = _digest(model, plan)
    worker = _Worker(model, plan, batch_size)
    dropped = list(plan.dropped)
    counts: list[int] = []
    rows: list[int] = []
    dim = 0
    with (folder / "features.f32").open("wb") as file:
        for done, place in enumerate(sorted(plan.places), 1):
            found = _stored_or_made(store, digest, plan, place, worker)
            if isinstance(found, str):
                dropped.append({"source": plan.row(place).slide, "reason": found})
            else:
                np.ascontiguousarray(found, dtype=np.float32).tofile(file)
                counts.append(len(found))
                rows.append(place)
                dim = found.shape[1]
            log.progress(done, len(plan.places), "slides", model=model.name)
    if not rows:
        raise PermanentError(
            f"no slide gives a patch; the first, {dropped[0]['source']}: {dropped[0]['reason']}"
        )
    features = np.memmap(folder / "features.f32", np.float32, "r+", shape=(sum(counts), dim))
    return Bags(
        features,
        np.cumsum([0, *counts], dtype=np.int64),
        np.array(rows, dtype=np.int64),
        len(dropped),
        tuple(dropped[:_MAX_NAMED]),
    )


def _digest(model: JudgedModel, plan: SlidePlan) -> str:
    """Of the model and of how patches are drawn; the slide's own digest is part of its key."""
    identity = [
        model.digest, TRANSFORM, TRANSFORM_VERSION, plan.grid.model_dump(mode="json"), plan.num_patches,
        plan.reading.patch_px, plan.reading.decoder, "float32",
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _stored_or_made(
    store: Store, digest: str, plan: SlidePlan, place: int, worker: _Worker
) -> Features | str:
    key = RunLayout.slide_embeddings(digest, plan.row(place).digest)
    try:
        return np.asarray(safetensors.numpy.load(store.get(key))["features"])
    except (
        NotFound,
        SafetensorError,
        KeyError,
    ):  # of two tasks at once, or of a damaged object, the last stands
        made = worker.embed(place)
    if not isinstance(made, str):
        store.put(key, safetensors.numpy.save({"features": made}))
    return made


class _Worker:
    """Reads and embeds the patches of one slide after another; opens model and reader when first needed."""

    def __init__(self, model: JudgedModel, plan: SlidePlan, batch_size: int) -> None:
        self._model, self._plan, self._batch_size = model, plan, batch_size
        self._forward: Forward | None = None
        self._reader: GuardedReader | None = None

    def embed(self, place: int) -> Features | str:
        """[n, D] of the slide's patches that can be read, or why there are none."""
        if self._forward is None or self._reader is None:
            self._forward = Forward(*self._model.load())
            self._reader = open_reader(self._plan.snapshot, self._plan.reading, share_tiles=True)
        features: list[Features] = []
        batch: list[Pixels] = []
        reason = "no position on its grid has enough tissue"
        for pixels in pixels_ahead(self._plan.requests(place), self._reader, self._forward.img_px):
            if isinstance(pixels, str):
                reason = f"no patch could be read; the first: {pixels}"
                continue
            batch.append(pixels)
            if len(batch) == self._batch_size:
                features.append(self._forward(np.stack(batch)))
                batch = []
        if batch:
            features.append(self._forward(np.stack(batch)))
        return self._checked(np.concatenate(features), place) if features else reason

    def _checked(self, features: Features, place: int) -> Features:
        if not np.isfinite(features).all():
            raise PermanentError(
                f"model {self._model.name}: embeddings of {self._plan.row(place).slide} are not finite",
                hint="the checkpoint diverged: look at the loss before it, and judge an earlier one",
            )
        return features


def pixels_ahead(
    requests: Sequence[PatchRequest], reader: GuardedReader, img_px: int
) -> Iterator[Pixels | str]:
    """Each patch at the model's size [img_px, img_px, 3], or why it cannot be read, in order, read ahead."""

    def read(part: Sequence[PatchRequest]) -> list[Pixels | str]:
        return [
            each.message if isinstance(each, SlideError) else fit(Image.fromarray(each), img_px)
            for each in reader.read(part)
        ]

    ahead: deque[Future[list[Pixels | str]]] = deque()
    with ThreadPoolExecutor(max(2, num_cores())) as threads:
        for start in range(0, len(requests), _PATCHES_PER_TASK):
            ahead.append(threads.submit(read, requests[start : start + _PATCHES_PER_TASK]))
            if len(ahead) > _BATCHES_AHEAD * max(2, num_cores()):
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
