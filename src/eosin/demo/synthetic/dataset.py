"""Synthetic data set in a store: slides, labelled patches, the overrides CSV."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from eosin import __version__
from eosin.demo.synthetic.config import CLASS_NAMES, SyntheticConfig, derived_seed, labelled_fingerprint
from eosin.demo.synthetic.scene import Rgb, draw_field
from eosin.demo.synthetic.slide import publish_slide
from eosin.demo.synthetic.texture import Stain
from eosin.errors import TransientError
from eosin.process import follow
from eosin.records import PatchSetManifest, PatchSetShard, load_record
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.storage import Store, open_store

_FIELD_SIDE_PATCHES = 2


class LabelledPatient(NamedTuple):
    """A patient of the labelled set and the split they are in: train, val or test."""

    name: str
    split: str


def labelled_patients(config: SyntheticConfig) -> tuple[LabelledPatient, ...]:
    """Every patient lies in one split alone: half train, a sixth val, a third test, at least one each."""
    num = config.labelled_patients
    num_test = max(1, round(num / 3)) if num else 0
    num_val = max(1, round(num / 6)) if num else 0
    splits = ["train"] * (num - num_test - num_val) + ["val"] * num_val + ["test"] * num_test
    return tuple(LabelledPatient(f"labelled-{i + 1:02d}", split) for i, split in enumerate(splits))


def draw_patient(index: int, config: SyntheticConfig) -> list[PatchRow]:
    """All labelled patches of the `index`-th patient, by class.

    Patches are cut from fields of 2 × 2, drawn at the slides' mpp, put through the slides' JPEG
    and reduced to `labelled_mpp`: what a patch reader would hand over.
    """
    patient = labelled_patients(config)[index]
    stain = Stain.of_slide(np.random.default_rng([derived_seed(config.seed, "labelled-stain", index), 3]))
    per_field = _FIELD_SIDE_PATCHES**2
    rows: list[PatchRow] = []
    for class_number, name in enumerate(CLASS_NAMES):
        for field in range(-(-config.labelled_per_class // per_field)):
            seed = derived_seed(config.seed, f"labelled/{index}/{class_number}", field)
            wanted = min(per_field, config.labelled_per_class - field * per_field)
            rows += _field_rows(patient, name, field, seed, stain, wanted, config)
    return rows


def _field_rows(patient: LabelledPatient, class_name: str, field: int, seed: int, stain: Stain, wanted: int,
                config: SyntheticConfig) -> list[PatchRow]:  # fmt: skip
    patch_px = config.labelled_patch_px
    side_px = _FIELD_SIDE_PATCHES * patch_px
    level0_px = round(side_px * config.labelled_mpp / config.mpp)
    pixels = _as_scanned(
        draw_field(level0_px, level0_px, class_name, stain, config.mpp, seed), config.quality
    )
    reduced = cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_AREA)
    rows = []
    for place in range(wanted):
        y, x = (patch_px * step for step in divmod(place, _FIELD_SIDE_PATCHES))
        patch = reduced[y : y + patch_px, x : x + patch_px]
        rows.append(PatchRow(
            image=_png(patch), slide=f"{patient.name}/{class_name}-{field}", patient=patient.name,
            x_px=round(x * level0_px / side_px), y_px=round(y * level0_px / side_px), mpp=config.labelled_mpp,
            foreground=1.0, label=class_name, split=patient.split))  # fmt: skip
    return rows


def interleaved(rows: Sequence[PatchRow], seed: int) -> list[PatchRow]:
    """The rows in a seeded random order, so that a prefix of them holds every class."""
    order = np.random.default_rng([seed, 4]).permutation(len(rows))
    return [rows[int(place)] for place in order]


def _as_scanned(pixels: Rgb, quality: int) -> Rgb:
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")  # type: ignore[no-any-return]  # simplejpeg has no types


def _png(patch: Rgb) -> bytes:
    _, encoded = cv2.imencode(".png", cv2.cvtColor(patch, cv2.COLOR_RGB2BGR))
    return bytes(encoded.tobytes())


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
