"""Campaign of damaged slides: counted, resumable, in processes whose death or hang names the damage.

    python -m tests.support.slide_fuzz --mutations 1000000 --state build/slide-fuzz

A mutation is named by a slide and a number. Chunks that are done lie in the state's folder, under the digest
of the reader and of the intact slides, so that a campaign that was ended goes on, and a changed reader begins
anew.
"""

import argparse
import functools
import hashlib
import json
import logging
import mmap
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

import eosin.slides
from eosin.index.overview import read_overview
from eosin.index.read_slide import check_levels
from eosin.slides.errors import SlideError
from eosin.slides.header import OpenedSlide, opened
from eosin.storage import ByteRange, ObjectInfo, Store
from tests.support.slide_files import (
    EXPLICIT,
    HTJ2K,
    JPEG2000,
    JPEGLS,
    JPEGXL,
    as_tiff_too,
    halved,
    tissue_picture,
    write_aperio,
    write_dicom,
    write_ome,
    write_philips,
    write_tiff,
)

LEVELS = [tissue_picture(150, 200), halved(tissue_picture(150, 200))]
WRITERS = {
    "jpeg.svs": lambda path: write_aperio(path, LEVELS, compression="jpeg"),
    "j2k.svs": lambda path: write_aperio(path, LEVELS, compression=33005),
    "big.tif": lambda path: write_tiff(path, LEVELS, big=True, compression="jpeg"),
    "be.tif": lambda path: write_tiff(path, LEVELS, byteorder=">", compression="lzw", predictor=True),
    "deflate.tif": lambda path: write_tiff(path, LEVELS, compression="deflate"),
    "zstd.tif": lambda path: write_tiff(path, LEVELS, compression="zstd"),
    "ome.ome.tif": lambda path: write_ome(path, LEVELS, compression="jpeg"),
    "philips.tiff": lambda path: write_philips(path, LEVELS),
    "jpeg.dcm": lambda path: write_dicom(path, LEVELS[0]),
    "sparse.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=JPEG2000, sparse=True),
    "extended.dcm": lambda path: write_dicom(path, LEVELS[0], table="extended"),
    "walk.dcm": lambda path: write_dicom(path, LEVELS[0], table="none"),
    "native.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=EXPLICIT),
    "jpegls.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=JPEGLS, sparse=True),
    "jpegxl.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=JPEGXL),
    "htj2k.dcm": lambda path: write_dicom(path, LEVELS[0], syntax=HTJ2K),
    "dual.dcm": lambda path: as_tiff_too(write_dicom(path, LEVELS[0])),
}
REASONS = {
    "unsupported-format",
    "empty-file", "not-a-slide", "truncated", "corrupt-header", "not-tiled", "unsupported-compression",
    "unsupported-pixels", "unsupported-layout", "tile-out-of-range", "corrupt-tile", "changed",
}  # fmt: skip
_CHUNK = 5000
_CPU_S, _MEMORY_BYTES = 10, 600 * 2**20
_WORDS = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1", b"\xff" * 8, b"\0" * 8,
          b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xff\xd8\xff", b"\0\0\1\0", b"\0\1"]  # fmt: skip


@functools.cache
def intact(name: str) -> bytes:
    """The slide that is damaged."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITERS[name](path)
        return path.read_bytes()


@functools.cache
def structure(name: str) -> np.ndarray:
    """Positions whose bytes are structure, not pixels: where nearly all of the damage should fall."""
    if name == "dual.dcm":  # behind the DICOM object lies what is never read
        return structure("jpeg.dcm")
    with in_memory(name, intact(name)) as slide:
        tiles = slide.tiles
    pixels = np.zeros(len(intact(name)), bool)
    for offset, size_bytes, _ in tiles.tolist():
        pixels[offset + 4 : offset + size_bytes] = True
    return np.flatnonzero(~pixels)


def mutated(name: str, number: int) -> bytes:
    """Mutation `number`: one to six changes of bits, words and stretches, nine of ten in structure."""
    rng = np.random.default_rng((sum(name.encode()), number))
    data, places = bytearray(intact(name)), structure(name)
    for _ in range(rng.integers(1, 7)):
        anywhere = rng.random() < 0.1
        at = int(rng.integers(len(data))) if anywhere else int(places[rng.integers(len(places))])
        kind = rng.integers(6)
        if kind == 0:
            patch = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 1:
            patch = _WORDS[rng.integers(len(_WORDS))]
        elif kind == 2:  # one bit
            patch = bytes([data[at] ^ 1 << int(rng.integers(8))])
        elif kind == 3:  # a length or an offset somewhat off
            value = int.from_bytes(data[at : at + 4], "little") + int(rng.integers(-16, 17))
            patch = (value % 2**32).to_bytes(4, "little")
        else:  # what stands elsewhere
            other = int(places[rng.integers(len(places))])
            patch = bytes(data[other : other + int(rng.integers(1, 33))])
        data[at : at + len(patch)] = patch[: len(data) - at]
    if rng.random() < 0.05:
        del data[int(rng.integers(len(data))) :]
    return bytes(data)


class OneObject:
    """A store of one object in memory; what else a reader may ask for comes from a folder."""

    def __init__(self, name: str, data: bytes) -> None:
        self.uri, self._data = "memory://", data
        self.info = ObjectInfo(name, len(data), "1", 0.0)

    def get_ranges(self, ranges: list[ByteRange]) -> list[bytes]:
        return [self._data[each.start : each.start + each.length] for each in ranges]

    def download(self, key: str, path: Path) -> ObjectInfo:
        path.write_bytes(self._data)
        return self.info


@contextmanager
def in_memory(name: str, data: bytes) -> Iterator[OpenedSlide]:
    """A slide of one object, open."""
    inner = OneObject(name, data)
    store: Store = inner  # type: ignore[assignment]  # as much of a store as readers need
    with opened(store, [inner.info]) as slide:
        yield slide


def verdict(name: str, data: bytes) -> str:
    """What becomes of a slide: `ok` or the reason. Anything else that it raises is a fault of the reader."""
    store: Store = OneObject(name, data)  # type: ignore[assignment]  # as there
    try:
        with in_memory(name, data) as slide:
            if slide.header.access == "tiles":
                check_levels(store, slide.header, slide.tiles)
                read_overview(store, slide.header, slide.tiles, mpp=8.0)
    except SlideError as error:
        assert error.message
        return error.reason
    return "ok"


def _chunk(name: str, start: int, progress: mmap.mmap) -> dict[str, int]:
    """Reasons of mutations from `start` on, counted; `progress` says which one is being read."""
    found: Counter[str] = Counter()
    for number in range(start, start + _CHUNK):
        progress[:8] = number.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, _CPU_S)
        found[verdict(name, mutated(name, number))] += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    if unknown := set(found) - REASONS - {"ok"}:
        raise AssertionError(f"unknown reasons: {unknown}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > _MEMORY_BYTES + _resident_bytes:
        raise AssertionError(f"{peak / 2**20:.0f} MiB of memory")
    return dict(found)


_resident_bytes = 0


def _in_a_process(name: str, start: int, target: Path) -> tuple[int, mmap.mmap]:
    progress = mmap.mmap(-1, 8)
    if pid := os.fork():
        return pid, progress
    code = 1
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        found = _chunk(name, start, progress)
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.rename(target)
        code = 0
    except BaseException as error:
        sys.stderr.write(
            f"{name} {int.from_bytes(progress[:8], 'little')}: {type(error).__name__}: {error}\n"
        )
    finally:
        os._exit(code)


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(eosin.slides.__file__).parent.glob("*.[pc]*")):
        digest.update(path.read_bytes() if path.is_file() else b"")
    for name in WRITERS:
        digest.update(intact(name))
    return digest.hexdigest()[:16]


def _chunks(num_mutations: int) -> Iterator[tuple[str, int]]:
    """Slides in turn, so that a campaign cut short has seen all of them."""
    rounds = -(-num_mutations // (_CHUNK * len(WRITERS)))
    for number in range(rounds):
        for name in WRITERS:
            yield name, number * _CHUNK


def campaign(num_mutations: int, folder: Path, num_processes: int) -> tuple[Counter[str], list[str]]:
    """Reasons of all mutations, those of earlier campaigns of this reader too, and what went wrong."""
    global _resident_bytes
    cv2.setNumThreads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for name in WRITERS:
        assert verdict(name, intact(name)) == "ok", name
        structure(name)
    _resident_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    state = folder / _digest()
    state.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    running: dict[int, tuple[str, int, Path, mmap.mmap]] = {}
    todo = _chunks(num_mutations)
    num_made, start_s = 0, time.monotonic()
    while True:
        for name, start in todo:
            target = state / f"{name}-{start}.json"
            if target.exists():
                counts.update(json.loads(target.read_text()))
                continue
            pid, progress = _in_a_process(name, start, target)
            running[pid] = (name, start, target, progress)
            if len(running) >= num_processes:
                break
        if not running:
            break
        pid, status = os.wait()
        name, start, target, progress = running.pop(pid)
        if status:
            number = int.from_bytes(progress[:8], "little")
            faults.append(f"{name} mutation {number}: exit status {os.waitstatus_to_exitcode(status)}")
            continue
        counts.update(json.loads(target.read_text()))
        num_made += _CHUNK
        rate = num_made / (time.monotonic() - start_s)
        print(f"{sum(counts.values()):,} mutations, {rate:,.0f} a second, {name}", flush=True)
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--state", type=Path, default=Path("build/slide-fuzz"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    counts, faults = campaign(options.mutations, options.state, options.processes)
    print(f"{sum(counts.values()):,} mutations: {dict(counts.most_common())}")
    for fault in faults:
        print(f"fault: {fault}")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
