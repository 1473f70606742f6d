"""Online Patching: batches of patches read straight from slides, ahead of need."""

import gc
import os
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from eosin.config.patches import HsvFilterConfig, PatchesConfig
from eosin.errors import PermanentError, UserError
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.decoding.quarantine import DecoderDied, Quarantine
from eosin.patches.reading.reader import PatchReader, Pixels
from eosin.patches.reading.sources import ByteSource, RangeSource, StageSource
from eosin.patches.reading.stage import StagePool
from eosin.patches.request import PatchBatch, PatchRequest, copied, on_host
from eosin.patches.sampling.sampler import Sampler
from eosin.process import Closing
from eosin.slides.errors import SlideError
from eosin.storage import Store

# Looked at, between two lines of the log: 1024, 2048, 4096…
_FIRST_COUNT = 1024


class HsvFilter:
    """Judges patches by `config`, and counts what it judged. Thread-safe; the verdict is a pure function."""

    def __init__(self, config: HsvFilterConfig, log: RunLog) -> None:
        self.config = config
        self.num_seen = 0
        self.num_rejected = 0
        self.num_kept_anyway = 0
        """Samples none of whose substitutes passed either: the best of them was taken."""
        self._log = log
        self._lock = threading.Lock()

    def passes(self, share: float) -> bool:
        """Whether a patch with this share of pixels in range serves; counted."""
        passed = share >= self.config.min_share
        with self._lock:
            self.num_seen += 1
            self.num_rejected += not passed
            due = self.num_seen >= _FIRST_COUNT and self.num_seen & (self.num_seen - 1) == 0
        if due:
            self.report()
        return passed

    def keep_anyway(self) -> None:
        """Count a sample none of whose substitutes passed."""
        with self._lock:
            self.num_kept_anyway += 1

    def report(self) -> None:
        """Log the counts so far; nothing where no patch was judged."""
        if self.num_seen:
            self._log.event("hsv-filter", seen=self.num_seen, rejected=self.num_rejected,
                            kept_anyway=self.num_kept_anyway)  # fmt: skip


def share_in_range(pixels: npt.NDArray[np.uint8], config: HsvFilterConfig) -> float:
    """Share of the pixels [h, w, 3] RGB whose hue, saturation and value all lie in range, in [0, 1]."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    ranges = (config.hue, config.saturation, config.value)
    inside = cv2.inRange(hsv, np.array([low for low, _ in ranges]), np.array([high for _, high in ranges]))
    return float(cv2.countNonZero(inside) / inside.size)


MAX_ATTEMPTS = 32
# Patches that one task fetches in one request batch and decodes: as many as leave each core one and a half
# tasks of what is read ahead. Of 32 a task batches of 30 take 5 to 12 % less CPU than of 16.
_FEWEST_PATCHES, _MOST_PATCHES, _TASKS_PER_CORE = 16, 32, 1.5
# A request to S3 takes several times as long as decoding what it brings. From a store that takes 40 ms, three
# a core read twice the patches a second of one a core; what is in flight is bounded by the batches ahead.
_THREADS_PER_CORE = 3

_EACH_UP_TO = 8
# Reasons that concern the whole slide: it will not come back during this process.
_WHOLE_SLIDE = ("changed", "missing")

OnReject = Callable[[PatchRequest, SlideError], None]
# Of a patch that the filter rejects: its share of pixels in range, its name, its pixels.
_Rejected = tuple[float, PatchRequest, Pixels]
_Task = Future[list[PatchRequest]]
# A batch in the making: its pixels, and the tasks that fill them.
_Ahead = tuple[Pixels, list[_Task]]


class PatchStream(Closing):
    """A `PatchSource` over the slides of a snapshot.

    What is delivered is the sampler's business alone: threads, cache, prefetch and the way to the bytes
    change the speed. A patch that cannot be read is drawn again with the next `attempt` and reported as
    the event `patch-redrawn`; so is one that `config.hsv_filter` rejects, which is counted alone (the event
    `hsv-filter`). At most `prefetch_batches` + 1 batches are in memory; what the consumer
    does not take is not read further.
    """

    def __init__(
        self,
        sampler: Sampler,
        log: RunLog,
        *,
        store: Store | None = None,
        num_threads: int | None = None,
        on_reject: OnReject | None = None,
        quarantine: Quarantine | None = None,
        device: str | None = None,
    ) -> None:
        """`store`: where the slides lie (None: opened at the snapshot's slides URI). `num_threads`: None
        for three a core this process may use, so that some decode while others wait for their bytes.
        `on_reject` is told every patch that could not be read, from any thread. `quarantine`: positions
        that crash a decoder (None: remembered by this stream alone). `device`: batches are tensors there
        (None: arrays), decoded there where the configured decoder can.
        """
        _leave_out_of_collections()
        self.sampler = sampler
        self.config = sampler.config
        self._reader = open_reader(sampler.snapshot, self.config, store, quarantine=quarantine, device=device)
        self._redraws = Redraws(sampler.snapshot, log)
        wanted_colors = self.config.hsv_filter
        self.hsv_filter = HsvFilter(wanted_colors, log) if wanted_colors is not None else None
        self._on_reject = on_reject or _ignore
        workers = num_threads or _THREADS_PER_CORE * num_cores()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="eosin-patches")

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[PatchBatch]:
        """One batch for each (step, sample indices), in order.

        Raises `PermanentError` naming slides where a sample and all its substitutes failed,
        `TransientError` and `UserError` where the whole store is in trouble.
        """
        ahead: deque[_Ahead] = deque()
        try:
            for step, indices in wanted:
                ahead.append(self._submit(step, indices))
                if len(ahead) > self.config.prefetch_batches:
                    yield _collect(*ahead.popleft())
            while ahead:
                yield _collect(*ahead.popleft())
        finally:
            for task in (task for _, tasks in ahead for task in tasks):
                task.cancel()

    def close(self) -> None:
        """Stop reading ahead; no thread is left."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
        if self.hsv_filter is not None:
            self.hsv_filter.report()

    def _submit(self, step: int, indices: Sequence[int]) -> _Ahead:
        """Tasks write into the batch itself: a copy of each patch would cost a tenth of its decoding."""
        pixels = self._reader.empty(len(indices))
        num_ahead = (self.config.prefetch_batches + 1) * len(indices)
        size = min(_MOST_PATCHES, max(_FEWEST_PATCHES, int(num_ahead / (_TASKS_PER_CORE * num_cores()))))
        parts = [slice(at, at + size) for at in range(0, len(indices), size)]
        return pixels, [self._threads.submit(self._read, step, indices[part], pixels[part]) for part in parts]

    def _read(self, step: int, indices: Sequence[int], out: Pixels) -> list[PatchRequest]:
        """The samples written to `out`, each by its first attempt that can be read and passes the filter."""
        found: dict[int, PatchRequest] = {}
        second_best: dict[int, _Rejected] = {}
        failed: list[PatchRequest] = []
        wanted = list(range(len(indices)))
        for attempt in range(MAX_ATTEMPTS):
            requests = self.sampler.draw_batch(step, [indices[place] for place in wanted], attempt)
            patches = out if attempt == 0 else self._reader.empty(len(wanted))
            gone = [self._redraws.gone(request.slide) for request in requests]
            errors = _read_others(self._reader, requests, patches, gone)
            for place, request, patch, error in zip(wanted, requests, patches, errors, strict=True):
                if error is not None:
                    failed.append(request)
                    self._redraws.report(request, error)
                    self._on_reject(request, error)
                elif self._passes(request, patch, second_best):
                    found[place] = request
                    if attempt > 0:
                        out[place] = patch
            wanted = [place for place in wanted if place not in found]
            if not wanted:
                break
        for place in wanted:
            found[place], out[place] = self._second_best(indices[place], second_best, failed)
        return [found[place] for place in range(len(indices))]

    def _passes(self, request: PatchRequest, patch: Pixels, second_best: dict[int, _Rejected]) -> bool:
        """Whether the patch serves; of those of a sample that do not, the best is put in `second_best`."""
        if self.hsv_filter is None:
            return True
        share = share_in_range(on_host(patch), self.hsv_filter.config)
        if self.hsv_filter.passes(share):
            return True
        if request.index not in second_best or share > second_best[request.index][0]:
            second_best[request.index] = share, request, copied(patch)
        return False

    def _second_best(
        self, index: int, second_best: dict[int, _Rejected], failed: list[PatchRequest]
    ) -> tuple[PatchRequest, Pixels]:
        """The patch of a sample no draw of which passed. Raises `PermanentError` where none could be read."""
        if index not in second_best:
            raise self._exhausted(next(request for request in failed if request.index == index))
        assert self.hsv_filter is not None
        self.hsv_filter.keep_anyway()
        _, request, patch = second_best[index]
        return request, patch

    def _exhausted(self, request: PatchRequest) -> PermanentError:
        return PermanentError(
            f"sample {request.index} of step {request.step} and its {MAX_ATTEMPTS - 1} substitutes cannot be "
            f"read: {self._redraws.summary()}",
            hint="index the slides again: they are not what the snapshot says",
        )


def _read_others(
    reader: "PatchReader | GuardedReader",
    requests: Sequence[PatchRequest],
    patches: Pixels,
    errors: list[SlideError | None],
) -> list[SlideError | None]:
    """As `PatchReader.read_into`, of the requests without an error in `errors`; the others keep theirs."""
    wanted = [place for place, error in enumerate(errors) if error is None]
    if len(wanted) == len(requests):
        return reader.read_into(requests, patches)
    rows = reader.empty(len(wanted))
    found = reader.read_into([requests[place] for place in wanted], rows)
    for place, row, error in zip(wanted, rows, found, strict=True):
        errors[place] = error
        if error is None:
            patches[place] = row
    return errors


@cache
def _leave_out_of_collections() -> None:
    """What lives by now, modules above all, is not looked through again: each time, every 5,000 patches, took
    as long as decoding 200 of them. Once a process, so that nothing that comes and goes stays for ever."""
    gc.collect()
    gc.freeze()


def _collect(pixels: Pixels, tasks: list[_Task]) -> PatchBatch:
    return PatchBatch(pixels, tuple(chain.from_iterable(task.result() for task in tasks)))


class Redraws:
    """Thread-safe record of the patches that were drawn again."""

    def __init__(self, snapshot: Snapshot, log: RunLog) -> None:
        self._snapshot = snapshot
        self._log = log
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._gone: dict[int, SlideError] = {}

    def gone(self, slide: int) -> SlideError | None:
        """Why nothing of this slide can be read any more, if so."""
        return self._gone.get(slide)

    def report(self, request: PatchRequest, error: SlideError) -> None:
        """Count a failed patch; the first 8 of a slide and reason are logged, then at 16, 32, 64…"""
        slide = self._snapshot.rows[request.slide].slide
        with self._lock:
            if error.reason in _WHOLE_SLIDE:
                self._gone[request.slide] = error
            self._counts[slide, error.reason] += 1
            count = self._counts[slide, error.reason]
        if count <= _EACH_UP_TO or count & (count - 1) == 0:
            self._log.event(
                "patch-redrawn", slide=slide, x_px=request.x_px, y_px=request.y_px, mpp=request.mpp,
                step=request.step, index=request.index, attempt=request.attempt, reason=error.reason,
                message=error.message, count=count,
            )  # fmt: skip

    def summary(self) -> str:
        """The slides that failed, with their reasons."""
        with self._lock:
            return ", ".join(f"{slide} ({reason})" for slide, reason in sorted(self._counts))


class GuardedReader(Closing):
    """As `PatchReader`; a patch that kills its decoder joins the quarantine, and is not read again."""

    def __init__(self, reader: PatchReader, quarantine: Quarantine) -> None:
        self._reader = reader
        self._quarantine = quarantine

    def read(self, requests: Sequence[PatchRequest]) -> list[Pixels | SlideError]:
        """Each patch as [patch_px, patch_px, 3] RGB, or why its slide cannot give it."""
        patches = self.empty(len(requests))
        errors = self.read_into(requests, patches)
        return [error or patch for error, patch in zip(errors, patches, strict=True)]

    def read_into(self, requests: Sequence[PatchRequest], patches: Pixels) -> list[SlideError | None]:
        """As `read`, each patch written into its row of `patches`; what is returned says why one is not."""
        known = [self._quarantine.error_of(request) for request in requests]
        errors = _read_others(self._reader, requests, patches, list(known))
        for request, before, error in zip(requests, known, errors, strict=True):
            if before is None and isinstance(error, DecoderDied):
                self._quarantine.add(request, error)
        return errors

    def empty(self, num: int) -> Pixels:
        """Room for `num` patches, where the reader puts them."""
        return self._reader.empty(num)

    def close(self) -> None:
        """End the decoders' processes."""
        self._reader.close()


def open_reader(
    snapshot: Snapshot,
    config: PatchesConfig,
    store: Store | None = None,
    *,
    share_tiles: bool = False,
    quarantine: Quarantine | None = None,
    device: str | None = None,
) -> GuardedReader:
    """A reader of the snapshot's patches, the way `config` wants it: by range or staged.

    `store`: where the slides lie (None: opened at the snapshot's slides URI). `share_tiles`: patches are
    neighbours, so tiles are kept. `quarantine`: positions that are not read. `device`: patches are
    tensors there. Raises `UserError` for a decoder that cannot read that way.
    """
    cv2.setNumThreads(1)  # patches are resized in threads of our own; OpenCV's would get in their way
    store = store or snapshot.slide_store()
    pool = _pool(store, snapshot, config)
    source = _source(store, config, pool)
    if device is None:
        reader = PatchReader(snapshot, config, source, pool, share_tiles=share_tiles)
    else:
        import torch

        from eosin.patches.reading.device_reader import DeviceReader

        reader = DeviceReader(snapshot, config, source, pool, device=torch.device(device))
    return GuardedReader(reader, Quarantine(None, snapshot) if quarantine is None else quarantine)


def num_cores() -> int:
    """Cores this process may use, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _ignore(request: PatchRequest, error: SlideError) -> None:
    """Nobody keeps an account of rejected patches."""


def _source(store: Store, config: PatchesConfig, pool: StagePool | None) -> ByteSource:
    if config.reader == "stage":
        assert pool is not None
        return StageSource(pool)
    return RangeSource(store)


def _pool(store: Store, snapshot: Snapshot, config: PatchesConfig) -> StagePool | None:
    """The pool of staged slides, where anything will be staged. Raises `UserError` for a way cuCIM lacks."""
    if config.decoder == "cucim" and config.reader != "stage":
        raise UserError(
            "cuCIM reads local files alone", hint="set patches.reader=stage beside patches.decoder=cucim"
        )
    local = "local" in set(snapshot.rows.texts("access", snapshot.usable))
    if config.reader != "stage" and not local:
        return None
    default = Path(tempfile.gettempdir()) / f"eosin-stage-{os.getuid()}"
    directory = Path(config.stage_dir) if config.stage_dir else default
    return StagePool(store, directory, config.stage_bytes)
