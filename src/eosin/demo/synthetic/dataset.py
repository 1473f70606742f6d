"""A whole synthetic data set in a store: slides, a labelled patch set, the overrides CSV."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import cv2

from eosin import __version__
from eosin.demo.synthetic.config import SyntheticConfig, derived_seed, labelled_fingerprint
from eosin.demo.synthetic.labelled import draw_patient, interleaved
from eosin.demo.synthetic.slide import publish_slide
from eosin.errors import TransientError
from eosin.process import follow
from eosin.records import PatchSetManifest, PatchSetShard, load_record
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.storage import Store, open_store

_SLIDES, _LABELLED = "slides/", "labelled/"
_SHARD = "00000-of-00001.parquet"
_MANIFEST = f"{_LABELLED}manifest.json"


class SlideRecord(NamedTuple):
    """One line of the overrides CSV; `slide` is the key below the slides folder."""

    slide: str
    patient: str
    cohort: str


def slide_records(config: SyntheticConfig) -> tuple[SlideRecord, ...]:
    """Slide names with their patients; slides of the two cohorts alternate by patient."""
    patients = [index // config.slides_per_patient for index in range(config.num_slides)]
    return tuple(
        SlideRecord(f"slide-{index:03d}.svs", f"patient-{patient + 1:02d}", f"cohort-{'ab'[patient % 2]}")
        for index, patient in enumerate(patients)
    )


def write_dataset(
    uri: str,
    config: SyntheticConfig | None = None,
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Publish `slides/*.svs`, `labelled/` (a patch set) and `overrides.csv` at `uri`.

    What is already there from the same config is kept, so a killed run is continued by the same call.
    `num_workers` processes draw at once (None: one a core); `progress` is told how many pieces are done.
    """
    config, store = config or SyntheticConfig(), open_store(uri)
    records = slide_records(config)
    keys = [_SLIDES + record.slide for record in records]
    store.delete([info.key for info in store.list(_SLIDES) if info.key not in keys])
    num_patients = 0 if _has_labelled(store, config) else config.labelled_patients
    with _workers(num_workers) as pool:
        slides: list[Future[Any]] = [
            pool.submit(_draw_slide, uri, key, derived_seed(config.seed, "slide", index), config)
            for index, key in enumerate(keys)
        ]
        patients = [pool.submit(draw_patient, index, config) for index in range(num_patients)]
        _finish(pool, [*slides, *patients], progress)
    if num_patients:
        _publish_labelled(store, [row for each in patients for row in each.result()], config)
    lines = [",".join(record) for record in (SlideRecord._fields, *records)]
    store.put("overrides.csv", "".join(f"{line}\n" for line in lines).encode())


def _workers(num_workers: int | None) -> Executor:
    """Fresh processes: forking one that already runs OpenCV's or Arrow's threads can deadlock."""
    if num_workers == 1:
        return ThreadPoolExecutor(1)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        num_workers or os.cpu_count(), context, initializer=_prepare_worker, initargs=(os.getpid(),)
    )


def _prepare_worker(parent_pid: int) -> None:
    """One OpenCV thread a process; and no worker outlives a parent that was killed."""
    cv2.setNumThreads(1)
    follow(parent_pid)


def _draw_slide(uri: str, key: str, seed: int, config: SyntheticConfig) -> None:
    publish_slide(open_store(uri), key, seed=seed, config=config)


def _finish(pool: Executor, jobs: list[Future[Any]], progress: Callable[[int, int], object]) -> None:
    try:
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            progress(done, len(jobs))
    except BrokenProcessPool as error:
        raise TransientError(
            "a process that draws slides died", hint="often for want of memory; what is finished is kept"
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _publish_labelled(store: Store, rows: list[PatchRow], config: SyntheticConfig) -> None:
    shard = encode_shard(interleaved(rows, config.seed))
    digest = hashlib.sha256(shard).hexdigest()
    manifest = PatchSetManifest(
        name="synthetic-classes", digest=hashlib.sha256(digest.encode()).hexdigest(),
        patch_px=config.labelled_patch_px, mpp=(config.labelled_mpp,), encoding="png", num_patches=len(rows),
        shards=(PatchSetShard(key=_SHARD, num_patches=len(rows), sha256=digest),),
        slides=tuple(sorted({row.slide for row in rows})), notes=(_note(config),), eosin_version=__version__,
    )  # fmt: skip
    store.put(_LABELLED + _SHARD, shard)
    store.put(_MANIFEST, manifest.to_json())


def _has_labelled(store: Store, config: SyntheticConfig) -> bool:
    manifest = load_record(PatchSetManifest, store, _MANIFEST)
    return manifest is not None and manifest.notes == (_note(config),)


def _note(config: SyntheticConfig) -> str:
    return f"synthetic textures, fingerprint {labelled_fingerprint(config)}"
