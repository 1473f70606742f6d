"""Directories that no scanner writes: refused with a reason, in bounded time and memory."""

import io
import struct
import time
import tracemalloc

import numpy as np
import pytest

from eosin.slides import tiff_ifd as tag
from eosin.slides.errors import SlideError
from eosin.slides.model import SlideObject
from eosin.slides.tiff import read_tiff
from eosin.slides.tiff_ifd import TiffFile

Entries = list[tuple[int, int, int, bytes]]
SHORT, LONG, LONG8 = 3, 4, 16


def short(number: int) -> bytes:
    return struct.pack("<HH", number, 0)


def long(number: int) -> bytes:
    return struct.pack("<I", number)


def entries(width: int = 500, height: int = 400, tile: int = 100, num: int = 20, **changes: bytes) -> Entries:
    """One level, uncompressed RGB, its tile offsets and sizes at byte 1000 and 2000."""
    values = {
        tag.IMAGE_WIDTH: (LONG, 1, long(width)), tag.IMAGE_LENGTH: (LONG, 1, long(height)),
        tag.BITS_PER_SAMPLE: (SHORT, 1, short(8)), tag.COMPRESSION: (SHORT, 1, short(1)),
        tag.PHOTOMETRIC: (SHORT, 1, short(2)), tag.SAMPLES_PER_PIXEL: (SHORT, 1, short(3)),
        tag.TILE_WIDTH: (LONG, 1, long(tile)), tag.TILE_LENGTH: (LONG, 1, long(tile)),
        tag.TILE_OFFSETS: (LONG, num, long(1000)), tag.TILE_BYTE_COUNTS: (LONG, num, long(2000)),
    }  # fmt: skip
    return [(number, *value) for number, value in values.items()]


def replaced(found: Entries, number: int, kind: int, count: int, value: bytes) -> Entries:
    return [(t, kind, count, value) if t == number else (t, k, c, v) for t, k, c, v in found]


def build(found: Entries, following: int = 0, size_bytes: int = 4096) -> bytes:
    data = bytearray(size_bytes)
    data[:8] = struct.pack("<2sHI", b"II", 42, 8)
    body = struct.pack("<H", len(found))
    for number, kind, count, value in found:
        body += struct.pack("<HHI", number, kind, count) + value
    body += struct.pack("<I", following)
    data[8 : 8 + len(body)] = body
    struct.pack_into("<20I", data, 1000, *([3000] * 20))
    struct.pack_into("<20I", data, 2000, *([10] * 20))
    return bytes(data)


def read(data: bytes) -> object:
    return read_tiff(TiffFile(io.BytesIO(data), len(data)), SlideObject("a.tif", "e", len(data)))


def refused(data: bytes) -> SlideError:
    tracemalloc.start()
    try:
        with pytest.raises(SlideError) as caught:
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
    return caught.value


def test_the_plain_one_is_read() -> None:
    header, table, _ = read(build(entries()))  # type: ignore[misc]
    assert (header.levels[0].num_tiles_x, header.levels[0].num_tiles_y) == (5, 4)
    np.testing.assert_array_equal(table["offset"], 3000)


@pytest.mark.parametrize("following", [8, 9])
def test_directories_that_loop_or_lead_astray(following: int) -> None:
    assert refused(build(entries(), following=following)).reason in {"corrupt-header", "truncated"}


@pytest.mark.parametrize(
    ("width", "height"),
    [(0, 400), (500, 0), (2**31, 2**31), (2**32 - 1, 2**32 - 1), (501, 400), (500, 401), (100, 100)],
)
def test_sizes_that_do_not_go_with_the_tiles(width: int, height: int) -> None:
    assert refused(build(entries(width, height))).reason == "corrupt-header"


@pytest.mark.parametrize("tile", [0, 2**16, 2**32 - 1])
def test_tiles_of_absurd_size(tile: int) -> None:
    assert refused(build(entries(tile=tile))).reason in {"corrupt-header", "unsupported-layout"}


@pytest.mark.parametrize("count", [0, 19, 21, 2**24, 2**32 - 1])
def test_counts_of_tiles_that_cannot_be(count: int) -> None:
    for number in (tag.TILE_OFFSETS, tag.TILE_BYTE_COUNTS):
        data = build(replaced(entries(), number, LONG, count, long(1000)))
        assert refused(data).reason in {"corrupt-header", "truncated"}


def test_offsets_past_the_end_of_the_file() -> None:
    data = build(replaced(entries(), tag.TILE_OFFSETS, LONG, 20, long(2**32 - 4)))
    assert refused(data).reason == "truncated"


@pytest.mark.parametrize("number", [tag.TILE_BYTE_COUNTS, tag.TILE_WIDTH, tag.IMAGE_WIDTH, tag.TILE_OFFSETS])
def test_a_tag_that_is_missing(number: int) -> None:
    found = [each for each in entries() if each[0] != number]
    assert refused(build(found)).reason in {"corrupt-header", "not-tiled"}


@pytest.mark.parametrize(
    ("number", "value", "reason"),
    [
        (tag.COMPRESSION, 34676, "unsupported-compression"), (tag.BITS_PER_SAMPLE, 16, "unsupported-pixels"),
        (tag.PHOTOMETRIC, 3, "unsupported-pixels"), (tag.SAMPLES_PER_PIXEL, 7, "unsupported-pixels"),
    ],
)  # fmt: skip
def test_what_eosin_does_not_read_is_named(number: int, value: int, reason: str) -> None:
    assert refused(build(replaced(entries(), number, SHORT, 1, short(value)))).reason == reason


def test_text_where_a_number_belongs() -> None:
    assert refused(build(replaced(entries(), tag.IMAGE_WIDTH, 2, 4, b"abcd"))).reason == "corrupt-header"


@pytest.mark.parametrize("head", [b"", b"II", b"II*\0", b"MM\0*\0\0\0", b"\x89PNG\r\n\x1a\n" + b"\0" * 8])
def test_what_does_not_begin_as_a_tiff(head: bytes) -> None:
    assert refused(head).reason == "not-a-slide"


def test_many_directories_that_share_one_table_do_not_fill_memory() -> None:
    """A file of 80 MB could otherwise announce a thousand levels of eight million tiles each."""
    num, size_bytes = 2**20, 2**24
    data = bytearray(size_bytes)
    data[:8] = struct.pack("<2sHI", b"II", 42, 8)
    at = 8
    for i in range(200):
        found = replaced(
            replaced(entries((1024 << 10) - i, 1 << 20, 1024), tag.TILE_OFFSETS, LONG, num, long(10**6)),
            tag.TILE_BYTE_COUNTS, LONG, num, long(10**6),
        )  # fmt: skip
        found.insert(0, (tag.NEW_SUBFILE_TYPE, LONG, 1, long(int(i > 0))))
        body = struct.pack("<H", len(found))
        for number, kind, count, value in found:
            body += struct.pack("<HHI", number, kind, count) + value
        following = at + len(body) + 4 if i < 199 else 0
        data[at : at + len(body) + 4] = body + struct.pack("<I", following)
        at += len(body) + 4
    tracemalloc.start()
    with pytest.raises(SlideError, match="tiles"):
        read(bytes(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30


def test_a_first_level_of_no_size_is_not_passed_over_for_the_next() -> None:
    whole = bytearray(build(entries(), following=512))
    reduced = [(254, LONG, 1, long(1)), *entries(width=250, height=200, num=6)]
    second, body_bytes = build(reduced), 2 + 12 * len(reduced) + 4
    whole[512 : 512 + body_bytes] = second[8 : 8 + body_bytes]
    size_bytes = len(whole)
    header, *_ = read_tiff(
        TiffFile(io.BytesIO(bytes(whole)), size_bytes), SlideObject("a.tif", "e", size_bytes)
    )
    assert [level.width_px for level in header.levels] == [500, 250]
    struct.pack_into("<I", whole, 8 + 2 + 8, 0)
    with pytest.raises(SlideError, match="a level is 0 × 400 px"):
        read(bytes(whole))


@pytest.mark.parametrize(
    "text", ["<Image ", "<Pixels a", "<OME><!--", "<a:", "<Image " + "a" * 400_000, '<Image a="']
)
def test_no_description_takes_more_than_linear_time(text: str) -> None:
    """Half a megabyte of what an expression may try anew at every byte."""
    said = (b"<OME" + text.encode() * (500_000 // len(text))) + b"\0"
    data = build([*entries(), (tag.IMAGE_DESCRIPTION, 2, len(said), long(4096))], size_bytes=4096) + said
    start_s = time.process_time()
    read(data)
    assert time.process_time() - start_s < 3.0


@pytest.mark.parametrize("spacing", ["1e999", "1e-320", "9e307", "0"])
def test_spacings_that_overflow_are_no_downsample(spacing: str) -> None:
    name = '"DICOM_PIXEL_SPACING">'
    said = f'{name}"0.0005" "0.0005"< {name}"{spacing}" "{spacing}"<\0'.encode()
    tags = [
        (tag.IMAGE_DESCRIPTION, 2, len(said), long(4096)),
        (tag.SOFTWARE, 2, 8, long(4096 + len(said))),
    ]
    read(build([*entries(), *tags], size_bytes=4096) + said + b"Philips\0")
