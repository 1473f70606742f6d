"""Tiles to pixels: scaled, damaged, and of every way of saying colour."""

from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from pydicom.pixels.encoders import RLELosslessEncoder

from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.jpeg import complete_jpeg
from eosin.slides.model import Level
from eosin.slides.region import parts_of_region
from tests.support.slide_files import RLE_ENCODED, picture, tissue_picture

TILE = picture(120, 240)
JPEG = Level(1000, 700, 1.0, 240, 120, "jpeg", "ycbcr", 0)
RAW = replace(JPEG, compression="none", color_space="rgb")


def error(level: Level, data: bytes) -> SlideError:
    with pytest.raises(SlideError) as caught:
        decode_tile(level, data)
    return caught.value


@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw", "deflate", "none"])
def test_scaled_tiles_are_close_to_area_averages(compression: str, denominator: int) -> None:
    smooth = tissue_picture(120, 240)
    data = {
        "jpeg": lambda: simplejpeg.encode_jpeg(smooth, quality=95, colorsubsampling="444"),
        "jpeg2000": lambda: imagecodecs.jpeg2k_encode(smooth, codecformat="j2k"),
        "lzw": lambda: imagecodecs.lzw_encode(smooth.tobytes()),
        "deflate": lambda: imagecodecs.zlib_encode(smooth.tobytes()),
        "none": smooth.tobytes,
    }[compression]()
    color = "ycbcr" if compression == "jpeg" else "rgb"
    level = replace(JPEG, compression=compression, color_space=color)  # type: ignore[arg-type]
    found = decode_tile(level, data, denominator)
    truth = smooth.reshape(120 // denominator, denominator, 240 // denominator, denominator, 3).mean((1, 3))
    assert found.dtype == np.uint8 and found.shape == truth.shape
    assert np.abs(found - truth).mean() < 3


@pytest.mark.parametrize("compression", ["jpeg2000", "jpegls"])
def test_a_tile_that_ends_where_its_level_does_is_white_behind_it(compression: str) -> None:
    """As wsidicom 0.31 writes levels that it makes: the last tiles of 703 × 301 px hold 63 × 45 px."""
    encode = {"jpeg2000": imagecodecs.jpeg2k_encode, "jpegls": imagecodecs.jpegls_encode}[compression]
    level = Level(703, 301, 1.0, 128, 128, compression, "rgb", 0)  # type: ignore[arg-type]
    edge = picture(64, 64)
    for denominator in (1, 2):
        found = decode_tile(level, encode(edge), denominator)
        whole = np.full((128, 128, 3), 255, np.uint8)
        whole[:64, :64] = edge
        np.testing.assert_array_equal(found, decode_tile(level, encode(whole), denominator))
    for damaged in (picture(32, 64), picture(64, 96)):
        assert error(level, encode(damaged)).reason == "corrupt-tile"


def test_a_scale_there_is_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match="scale_denominator 3"):
        decode_tile(RAW, TILE.tobytes(), 3)


def test_shared_tables_are_spliced_and_rgb_is_said() -> None:
    whole = imagecodecs.jpeg8_encode(TILE, level=90, colorspace="rgb", outcolorspace="rgb")
    segments, at = [], 2
    while whole[at + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
        segments.append((whole[at + 1], whole[at : at + length]))
        at += length
    tables = b"".join(data for code, data in segments if code in (0xDB, 0xC4))
    frame = b"".join(data for code, data in segments if code == 0xC0)
    level = replace(JPEG, color_space="rgb", jpeg_tables=b"\xff\xd8" + tables + b"\xff\xd9")
    found = decode_tile(level, b"\xff\xd8" + frame + whole[at:])
    np.testing.assert_array_equal(found, decode_tile(replace(JPEG, color_space="rgb"), whole))
    assert np.abs(found.astype(int) - TILE).max() < 40
    assert b"Adobe" in complete_jpeg(level, b"\xff\xd8" + frame + whole[at:])
    assert b"Adobe" not in complete_jpeg(JPEG, simplejpeg.encode_jpeg(TILE))


def test_gray_is_repeated_and_what_is_transparent_is_white() -> None:
    gray = replace(RAW, color_space="gray")
    found = decode_tile(gray, TILE[..., 0].tobytes())
    np.testing.assert_array_equal(found, np.repeat(TILE[..., :1], 3, axis=2))
    alpha = np.full_like(TILE[..., :1], 255)
    alpha[:20] = 0
    found = decode_tile(RAW, np.dstack([TILE, alpha]).tobytes())
    np.testing.assert_array_equal(found[20:], TILE[20:])
    assert (found[:20] == 255).all()


def test_horizontal_differences_are_summed_up() -> None:
    differences = np.diff(TILE, axis=1, prepend=np.zeros_like(TILE[:, :1]))
    level = replace(RAW, compression="lzw", predictor=2)
    np.testing.assert_array_equal(decode_tile(level, imagecodecs.lzw_encode(differences.tobytes())), TILE)


@pytest.mark.parametrize(
    ("level", "data"),
    [
        (JPEG, b""), (JPEG, b"not a jpeg"), (JPEG, simplejpeg.encode_jpeg(TILE)[:900]),
        (JPEG, simplejpeg.encode_jpeg(picture(240, 240))),
        (replace(JPEG, compression="jpeg2000"), b"\0" * 200),
        (replace(JPEG, compression="jpeg2000"), imagecodecs.jpeg2k_encode(picture(64, 64))),
        (RAW, TILE.tobytes()[:-1]), (replace(RAW, compression="lzw"), b"\xff" * 50),
        (replace(RAW, compression="deflate"), imagecodecs.zlib_encode(bytes(10))),
        (replace(RAW, compression="deflate"), imagecodecs.zlib_encode(bytes(2**26))),
    ],
)  # fmt: skip
def test_a_tile_that_is_not_the_levels_is_corrupt(level: Level, data: bytes) -> None:
    assert error(level, data).reason == "corrupt-tile"


def test_a_jpeg2000_tile_that_announces_gigapixels_is_not_decoded() -> None:
    data = bytearray(imagecodecs.jpeg2k_encode(TILE, codecformat="j2k"))
    data[8:16] = b"\x00\x0f\xff\xff\x00\x0f\xff\xff"
    assert "1048575" in error(replace(JPEG, compression="jpeg2000"), bytes(data)).message


def test_a_region_is_cut_into_what_its_tiles_give() -> None:
    level = Level(1000, 700, 1.0, 240, 120, "none", "rgb", 0)
    parts = parts_of_region(level, 230, 110, 300, 150)
    assert [part.tile for part in parts] == [0, 1, 2, 5, 6, 7, 10, 11, 12]
    region = np.full((150, 300, 3), 255, np.uint8)
    for part in parts:
        part.of_region(region)[:] = part.of_tile(np.full((120, 240, 3), part.tile, np.uint8))
    assert (region[0, 0] == 0).all() and (region[0, 10] == 1).all() and (region[10, 0] == 5).all()
    assert (region[10, 10] == 6).all() and (region[149, 299] == 12).all()
    (outside,) = parts_of_region(level, 990, 690, 20, 20)
    assert (outside.width_px, outside.height_px, outside.left_px, outside.top_px) == (10, 10, 0, 0)
    assert parts_of_region(level, -50, 0, 50, 50) == parts_of_region(level, 1000, 0, 5, 5) == []


@pytest.mark.parametrize("compression", ["rle", "webp", "packbits"])
def test_damaged_tiles_are_no_picture_and_end_no_process(compression: str) -> None:
    """imagecodecs' own decoder of DICOM run lengths ends the process on a few of these offsets."""
    level = replace(RAW, compression=compression, tile_width_px=128, tile_height_px=128)
    tile = tissue_picture(128, 128)
    data: bytes = {
        "rle": lambda: RLELosslessEncoder.encode(tile, **RLE_ENCODED),
        "webp": lambda: imagecodecs.webp_encode(tile, lossless=True),
        "packbits": lambda: imagecodecs.packbits_encode(tile.tobytes()),
    }[compression]()
    np.testing.assert_array_equal(decode_tile(level, data), tile)
    assert error(level, data[: len(data) // 2]).reason == "corrupt-tile"
    assert error(replace(level, tile_width_px=64), data).reason == "corrupt-tile"
    rng = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(data)
        for place in rng.integers(0, 64 if rng.random() < 0.5 else len(data), 3):
            damaged[place] = rng.integers(256)
        try:
            assert decode_tile(level, bytes(damaged)).shape == tile.shape
        except SlideError as caught:
            assert caught.reason == "corrupt-tile"
