"""Damaged and hostile slides: always a header or a reason; never a crash, a hang or a flood of memory."""

from __future__ import annotations

import functools
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eosin.index.overview import read_overview
from eosin.index.read_slide import check_levels
from eosin.slides.errors import SlideError
from eosin.storage import open_store
from tests.support.regions import read_header
from tests.support.slide_files import (
    JPEG2000,
    halved,
    tissue_picture,
    write_aperio,
    write_dicom,
    write_ome,
    write_philips,
    write_tiff,
)

LEVELS = [tissue_picture(300, 330), halved(tissue_picture(300, 330))]
NAMES = (
    "jpeg.svs", "j2k.svs", "big.tif", "be.tif", "deflate.tif", "ome.ome.tif", "philips.tiff",
    "jpeg.dcm", "sparse.dcm", "extended.dcm", "walk.dcm",
)  # fmt: skip
_MEMORY_BYTES = 600 * 2**20
REASONS = {
    "unsupported-format",
    "empty-file", "not-a-slide", "truncated", "corrupt-header", "not-tiled", "unsupported-compression",
    "unsupported-pixels", "unsupported-layout", "tile-out-of-range", "corrupt-tile", "changed",
}  # fmt: skip


@functools.cache
def intact(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        {
            "jpeg.svs": lambda: write_aperio(path, LEVELS, compression="jpeg"),
            "j2k.svs": lambda: write_aperio(path, LEVELS, compression=33005),
            "big.tif": lambda: write_tiff(path, LEVELS, big=True, compression="jpeg"),
            "be.tif": lambda: write_tiff(path, LEVELS, byteorder=">", compression="lzw", predictor=True),
            "deflate.tif": lambda: write_tiff(path, LEVELS, compression="deflate"),
            "ome.ome.tif": lambda: write_ome(path, LEVELS, compression="jpeg"),
            "philips.tiff": lambda: write_philips(path, LEVELS),
            "jpeg.dcm": lambda: write_dicom(path, LEVELS[0]),
            "sparse.dcm": lambda: write_dicom(path, LEVELS[0], syntax=JPEG2000, sparse=True),
            "extended.dcm": lambda: write_dicom(path, LEVELS[0], table="extended"),
            "walk.dcm": lambda: write_dicom(path, LEVELS[0], table="none"),
        }[name]()
        return path.read_bytes()


@functools.cache
def header_bytes(name: str) -> tuple[int, ...]:
    """Positions whose bytes are structure, not pixels: where nearly all of the damage should fall."""
    data = intact(name)
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        store = open_store(folder)
        _, tiles = read_header(store, [store.head(name)])
    pixels = np.zeros(len(data), bool)
    for offset, size_bytes, _ in tiles.tolist():
        pixels[offset + 4 : offset + size_bytes] = True
    return tuple(np.flatnonzero(~pixels).tolist())


def read_damaged(name: str, data: bytes) -> str:
    """What becomes of the slide: `ok` or the reason. Anything else it raises fails the test."""
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        store = open_store(folder)
        try:
            header, tiles = read_header(store, [store.head(name)])
            if header.access == "tiles":
                check_levels(store, header, tiles)
                read_overview(store, header, tiles, mpp=8.0)
        except SlideError as error:
            assert error.message
            return error.reason
        return "ok"


mutations = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\xff" * 8])),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def mutated(name: str, changes: list[tuple[float, bytes, bool]], keep: float) -> bytes:
    data = bytearray(intact(name))
    structure = header_bytes(name)
    for place, patch, anywhere in changes:
        at = int(place * len(data)) if anywhere else structure[int(place * len(structure))]
        data[at : at + len(patch)] = patch[: len(data) - at]
    return bytes(data[: max(1, int(keep * len(data)))])


def judge(name: str, changes: list[tuple[float, bytes, bool]], keep: float) -> None:
    assert read_damaged(name, mutated(name, changes, keep)) in REASONS | {"ok"}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=10_000, suppress_health_check=list(HealthCheck), derandomize=True)
@given(changes=mutations, keep=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_a_damaged_slide_has_a_reason(
    name: str, changes: list[tuple[float, bytes, bool]], keep: float
) -> None:
    judge(name, changes, keep)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3000, deadline=10_000, suppress_health_check=list(HealthCheck))
@given(changes=mutations, keep=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_thousands_of_damaged_slides_have_reasons(
    name: str, changes: list[tuple[float, bytes, bool]], keep: float
) -> None:
    tracemalloc.start()
    try:
        judge(name, changes, keep)
        assert tracemalloc.get_traced_memory()[1] < _MEMORY_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_slide_has_a_reason(name: str, share: float) -> None:
    data = intact(name)
    reason = read_damaged(name, data[: int(share * len(data))])
    assert reason in REASONS


@pytest.mark.parametrize("name", NAMES)
def test_an_intact_slide_is_ok(name: str) -> None:
    assert read_damaged(name, intact(name)) == "ok"
