"""A whole synthetic data set in a folder: slides, their truth, a labelled patch set, the overrides CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2

from eosin import __version__
from eosin.demo.synthetic.config import SyntheticConfig, derived_seed, labelled_fingerprint
from eosin.demo.synthetic.labelled import draw_patient, interleaved
from eosin.demo.synthetic.plan import SlideTruth, plan_slide
from eosin.demo.synthetic.slide import publish, remove_stale_parts, write_slide
from eosin.demo.synthetic.tiff import read_fingerprint
from eosin.errors import PermanentError, TransientError, UserError
from eosin.records.patchset import PatchSetManifest, PatchSetShard
from eosin.records.patchset_shard import PatchRow, encode_shard

Progress = Callable[[int, int, str], None]
"""Called with (pieces done, pieces in all, what was done)."""

_SHARD = "00000-of-00001.parquet"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SlideRecord:
    """One line of the overrides CSV; `slide` is the key below the slides folder."""

    slide: str
    patient: str
    cohort: str


@dataclass(frozen=True)
class DatasetTruth:
    """What `write_dataset` wrote."""

    folder: Path
    records: tuple[SlideRecord, ...]
    slides: tuple[SlideTruth, ...]
    """In the order of `records`."""
    labelled: PatchSetManifest | None
    """None where the config asks for no labelled patients."""

    @property
    def slides_folder(self) -> Path:
        """Where the slides lie."""
        return self.folder / "slides"

    @property
    def overrides_path(self) -> Path:
        """The table of what their headers lack."""
        return self.folder / "overrides.csv"

    @property
    def labelled_folder(self) -> Path:
        """The patch set with labels."""
        return self.folder / "labelled"


def slide_records(config: SyntheticConfig) -> tuple[SlideRecord, ...]:
    """Slide names with their patients; slides of the two cohorts alternate by patient."""
    patients = [index // config.slides_per_patient for index in range(config.num_slides)]
    return tuple(
        SlideRecord(f"slide-{index:03d}.svs", f"patient-{patient + 1:02d}", f"cohort-{'ab'[patient % 2]}")
        for index, patient in enumerate(patients)
    )


def write_dataset(
    folder: str | Path,
    config: SyntheticConfig | None = None,
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> DatasetTruth:
    """Writes `slides/*.svs`, `truth/*.geojson`, `labelled/` and `overrides.csv` below `folder`.

    Each file appears whole or not at all, and what is already there from the same config is kept,
    so a killed run is continued by the same call. `num_workers` processes draw at once (None: one a
    core). Raises `UserError` where the folder cannot be written.
    """
    root, config = Path(folder), config or SyntheticConfig()
    records = slide_records(config)
    with _clear_errors(root):
        _prepare(root, records)
        labelled = _existing_labelled(root / "labelled", config)
        jobs = [_slide_job(root, index, record, config) for index, record in enumerate(records)]
        if labelled is None:
            jobs += [
                _SlideJob("labelled patient", index, config, "") for index in range(config.labelled_patients)
            ]
        drawn = _run(jobs, num_workers, progress or _silent)
        if labelled is None and config.labelled_patients:
            labelled = _publish_labelled(root / "labelled", drawn, config)
        publish(root / "overrides.csv", _overrides_csv(records))
    slides = tuple(plan_slide(_slide_seed(config, index), config) for index in range(config.num_slides))
    return DatasetTruth(root, records, slides, labelled)


def _prepare(root: Path, records: tuple[SlideRecord, ...]) -> None:
    """Makes the folders; removes unfinished files, and slides that an earlier, larger config left."""
    for name in ("slides", "truth", "labelled"):
        (root / name).mkdir(parents=True, exist_ok=True)
        remove_stale_parts(root / name)
    wanted = {record.slide for record in records}
    for path in (root / "slides").glob("slide-*.svs"):
        if path.name not in wanted and read_fingerprint(path) is not None:
            path.unlink()
            (root / "truth" / f"{path.stem}.geojson").unlink(missing_ok=True)


@dataclass(frozen=True)
class _SlideJob:
    kind: str
    index: int
    config: SyntheticConfig
    path: str

    @property
    def what(self) -> str:
        return f"{self.kind} {self.index + 1}"

    def run(self) -> list[PatchRow]:
        if self.kind == "labelled patient":
            return draw_patient(self.index, self.config)
        path = Path(self.path)
        truth = write_slide(path, seed=_slide_seed(self.config, self.index), config=self.config)
        publish(path.parent.parent / "truth" / f"{path.stem}.geojson", truth.to_geojson())
        return []


def _slide_job(root: Path, index: int, record: SlideRecord, config: SyntheticConfig) -> _SlideJob:
    return _SlideJob("slide", index, config, str(root / "slides" / record.slide))


def _slide_seed(config: SyntheticConfig, index: int) -> int:
    return derived_seed(config.seed, "slide", index)


def _run(jobs: list[_SlideJob], num_workers: int | None, progress: Progress) -> list[PatchRow]:
    """The patches of all labelled patients, in order, once every job is done."""
    workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    results: dict[int, list[PatchRow]] = {}
    for place, rows in _in_turn(jobs) if workers <= 1 else _in_processes(jobs, workers):
        results[place] = rows
        progress(len(results), len(jobs), jobs[place].what)
    return [row for place in range(len(jobs)) for row in results[place]]


def _in_turn(jobs: list[_SlideJob]) -> Iterator[tuple[int, list[PatchRow]]]:
    for place, job in enumerate(jobs):
        yield place, job.run()


def _in_processes(jobs: list[_SlideJob], workers: int) -> Iterator[tuple[int, list[PatchRow]]]:
    """Fresh processes: forking one that already runs OpenCV's or Arrow's threads can deadlock."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        futures = {pool.submit(job.run): place for place, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise TransientError(
                "a process that draws slides died",
                hint="often for want of memory, or for a script without `if __name__ == '__main__':`. "
                "num_workers=1 draws in this process; what is finished is kept",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare_worker() -> None:
    """One OpenCV thread a process; and no worker outlives a parent that was killed."""
    cv2.setNumThreads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _publish_labelled(folder: Path, rows: list[PatchRow], config: SyntheticConfig) -> PatchSetManifest:
    shard = encode_shard(interleaved(rows, config.seed))
    digest = hashlib.sha256(shard).hexdigest()
    manifest = PatchSetManifest(
        name="synthetic-classes", digest=hashlib.sha256(digest.encode()).hexdigest(),
        patch_px=config.labelled_patch_px, mpp=(config.labelled_mpp,), encoding="png", num_patches=len(rows),
        shards=(PatchSetShard(key=_SHARD, num_patches=len(rows), sha256=digest),),
        slides=tuple(sorted({row.slide for row in rows})), notes=(_note(config),), eosin_version=__version__,
    )  # fmt: skip
    publish(folder / _SHARD, shard)
    publish(folder / _MANIFEST, manifest.to_json())
    return manifest


def _existing_labelled(folder: Path, config: SyntheticConfig) -> PatchSetManifest | None:
    """The labelled set that is there, if it is whole and of this config."""
    path = folder / _MANIFEST
    try:
        manifest = PatchSetManifest.from_json(path.read_bytes(), source=str(path))
        shard = (folder / _SHARD).read_bytes()
    except (FileNotFoundError, PermanentError):
        return None
    whole = [hashlib.sha256(shard).hexdigest()] == [part.sha256 for part in manifest.shards]
    return manifest if whole and manifest.notes == (_note(config),) else None


def _note(config: SyntheticConfig) -> str:
    return f"synthetic textures, fingerprint {labelled_fingerprint(config)}"


def _overrides_csv(records: tuple[SlideRecord, ...]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("slide", "patient", "cohort"))
    writer.writerows((record.slide, record.patient, record.cohort) for record in records)
    return text.getvalue().encode()


@contextmanager
def _clear_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write the synthetic data set to {root}: {error.strerror or error}",
                        hint="choose a folder with write permission and free space") from error  # fmt: skip


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody asked for."""
