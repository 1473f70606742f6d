"""A part of a tile is that part of the whole tile, to the bit, however the tile was encoded."""

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.slides import decode
from eosin.slides.decode import decode_parts, decode_tile, decodes_parts
from eosin.slides.errors import SlideError
from eosin.slides.model import Level
from eosin.slides.region import TilePart, parts_of_region

Pixels = npt.NDArray[np.uint8]
_SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}  # fmt: skip
_SIZES = [(240, 240), (256, 256), (96, 176), (512, 24)]

needs_module = pytest.mark.skipif(not decodes_parts(), reason="installed without the compiled module")


def picture(width: int, height: int, seed: int) -> Pixels:
    """Sharp chroma edges on noise: what shows a cut that upsampling sees."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST).astype(int)
    return np.clip(pixels + rng.integers(-20, 21, pixels.shape), 0, 255).astype(np.uint8)


def encoded(width: int, height: int, seed: int, *options: int) -> tuple[Level, bytes]:
    done, data = cv2.imencode(".jpg", picture(width, height, seed), [cv2.IMWRITE_JPEG_QUALITY, 85, *options])
    assert done
    return Level(width * 4, height * 4, 1.0, width, height, "jpeg", "ycbcr", 0), data.tobytes()


def part_of(level: Level, data: bytes, denominator: int, box: tuple[int, int, int, int]) -> Pixels:
    x, y, width, height = box
    canvas = np.full((height + 6, width + 4, 3), 7, np.uint8)
    part = TilePart(0, x, y, 0, 0, width, height)
    decode_parts(level, denominator, [data], [part], canvas[3:-3, 2:-2])
    canvas[3:-3, 2:-2], inside = 7, canvas[3:-3, 2:-2].copy()
    assert (canvas == 7).all(), "written beside the part"
    return inside


def boxes(width: int, height: int, seed: int, num: int) -> list[tuple[int, int, int, int]]:
    """The whole, its corner pixels, and rectangles of every kind between."""
    rng = np.random.default_rng(seed)
    found = [(0, 0, width, height), (0, 0, 1, 1), (width - 1, height - 1, 1, 1), (16 % width, 0, 1, height)]
    for _ in range(num):
        x0, x1 = sorted(rng.choice(width + 1, 2, replace=False).tolist())
        y0, y1 = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        found.append((x0, y0, x1 - x0, y1 - y0))
    return found


@needs_module
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", _SAMPLINGS)
def test_any_part_is_cut_from_the_whole(
    sampling: str, denominator: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = [
        (encoded(width, height, 3, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLINGS[sampling]), width, height)
        for width, height in _SIZES
    ]
    wholes = [decode_tile(level, data, denominator) for (level, data), _, _ in tiles]
    monkeypatch.setattr(decode, "decode_tile", None)  # none of these may be decoded whole
    for ((level, data), width, height), whole in zip(tiles, wholes, strict=True):
        for x, y, w, h in boxes(width // denominator, height // denominator, 11, 40):
            part = part_of(level, data, denominator, (x, y, w, h))
            assert np.array_equal(part, whole[y : y + h, x : x + w]), (width, x, y, w, h)


@needs_module
def test_parts_do_not_depend_on_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of 16 bits, blocks without an end, zeros by the run; tables of a tile, more than are kept."""
    options = [(quality, optimize) for quality in (5, 30, 75, 92, 97, 100) for optimize in (0, 1)]
    tiles = [
        encoded(256, 256, seed, cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, optimize)
        for seed, (quality, optimize) in enumerate(options)
    ]
    level = tiles[0][0]
    wholes = [decode_tile(level, data) for _, data in tiles]
    monkeypatch.setattr(decode, "decode_tile", None)
    rng = np.random.default_rng(2)
    for number in [*range(len(tiles)), *rng.integers(0, len(tiles), 400)]:
        (x, y, w, h) = boxes(256, 256, int(rng.integers(1 << 30)), 1)[-1]
        part = part_of(level, tiles[number][1], 1, (x, y, w, h))
        assert np.array_equal(part, wholes[number][y : y + h, x : x + w]), (options[number], x, y, w, h)


@pytest.mark.parametrize("sampling", ["4:2:0", "4:4:4"])
def test_shared_tables_and_unsaid_colours_are_understood(sampling: str) -> None:
    level, data = encoded(240, 240, 5, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLINGS[sampling])
    frame = data.index(b"\xff\xc0")
    tables = b"\xff\xd8" + data[20:frame] + b"\xff\xd9"
    bare = b"\xff\xd8" + data[frame:]
    for color_space in ("ycbcr", "rgb"):
        shared = replace(level, jpeg_tables=tables, color_space=color_space)
        whole = decode_tile(shared, bare)
        assert np.array_equal(part_of(shared, bare, 1, (50, 60, 70, 80)), whole[60:140, 50:120]), color_space
        assert np.array_equal(part_of(shared, bare, 1, (0, 0, 240, 240)), whole)


@pytest.mark.parametrize("kind", ["progressive", "gray", "restart", "raw", "no module"])
def test_what_the_module_does_not_do_is_decoded_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "progressive": (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "restart": (cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
    }.get(kind, ())  # fmt: skip
    level, data = encoded(240, 240, 6, *options)
    if kind == "gray":
        level = replace(level, color_space="gray")
        data = cv2.imencode(".jpg", picture(240, 240, 6)[..., 0])[1].tobytes()
    elif kind == "raw":
        level, data = replace(level, compression="none", color_space="rgb"), picture(240, 240, 6).tobytes()
    elif kind == "no module":
        monkeypatch.setattr(decode, "_jpeg_part", None)
    whole = decode_tile(level, data)
    assert np.array_equal(part_of(level, data, 1, (33, 44, 100, 120)), whole[44:164, 33:133])


def test_a_tile_of_another_size_or_cut_short_is_refused() -> None:
    level, data = encoded(240, 240, 7)
    for bad in (data[: len(data) // 2], b"", data[:1], b"\xff\xd8", b"GIF89a" + data):
        with pytest.raises(SlideError, match="tile"):
            part_of(level, bad, 1, (0, 0, 240, 240))
    with pytest.raises(SlideError, match="240 × 240"):
        part_of(replace(level, tile_width_px=256), data, 1, (0, 0, 240, 240))


def test_a_region_is_put_together_from_bytes_pixels_and_nothing() -> None:
    level, data = encoded(240, 240, 9)
    level = replace(level, width_px=720, height_px=480)
    parts = parts_of_region(level, 100, 90, 600, 300)
    assert len(parts) == 6
    whole = decode_tile(level, data)
    tiles = [data, None, whole[::-1], data, data, None]
    region = np.zeros((300, 600, 3), np.uint8)
    decode_parts(level, 1, tiles, parts, region)
    expected = np.full((480, 720, 3), 255, np.uint8)
    expected[:240, :240] = expected[240:, :240] = expected[240:, 240:480] = whole
    expected[:240, 480:] = whole[::-1]
    assert np.array_equal(region, expected[90:390, 100:700])
    for bad in (data[: len(data) // 2], b"\xff\xd8"):
        with pytest.raises(SlideError, match="tile"):
            decode_parts(level, 1, [data, data, data, data, data, bad], parts, region)


@needs_module
def test_a_part_outside_the_tile_or_pixels_of_another_shape_are_refused_not_written() -> None:
    from eosin.slides import _jpeg_part as module

    _, data = encoded(240, 240, 8)

    def left_of(part: tuple[int, ...], region: npt.NDArray[np.generic]) -> bytes:
        return module.decode_parts(b"", False, 240, 240, 1, (data,), (part,), region)  # type: ignore[arg-type]

    assert left_of((0, 200, 0, 0, 0, 41, 40), np.empty((40, 41, 3), np.uint8)) == b"\0"
    assert left_of((0, 0, 240, 0, 0, 1, 1), np.empty((1, 1, 3), np.uint8)) == b"\0"
    assert left_of((0, 0, 239, 0, 0, 1, 1), np.empty((1, 1, 3), np.uint8)) == b"\1"
    for x, y, width, height in (
        (0, 0, 5, 4),
        (0, 0, 4, 5),
        (1, 0, 4, 4),
        (0, 4, 1, 1),
        (0, 0, 0, 1),
        (2**31, 0, 1, 1),
    ):
        with pytest.raises(ValueError, match="outside"):
            left_of((0, 0, 0, x, y, width, height), np.empty((4, 4, 3), np.uint8))
    flat, rgba, wide = (
        np.empty((4, 4), np.uint8),
        np.empty((4, 4, 4), np.uint8),
        np.empty((4, 4, 3), np.uint16),
    )
    for odd in (flat, rgba[..., :3], rgba[:0, :, :3], wide, rgba[:, ::-1, :3]):
        with pytest.raises(ValueError, match="writable"):
            left_of((0, 0, 0, 0, 0, 1, 1), odd)
    locked = np.empty((4, 4, 3), np.uint8)
    locked.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        left_of((0, 0, 0, 0, 0, 1, 1), locked)
    with pytest.raises(ValueError, match="as many"):
        module.decode_parts(b"", False, 240, 240, 1, (data, data), ((0,) * 7,), np.empty((4, 4, 3), np.uint8))


@needs_module
@settings(max_examples=150, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 90)] * 2),
    scales=st.tuples(*[st.floats(1, 5)] * 2),
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([2, 256]),
)
def test_a_region_shrinks_to_the_bit_as_opencv_shrinks_it(
    sides: tuple[int, int], scales: tuple[float, float], seed: int, levels: int
) -> None:
    height, width = (int(side * scale) for side, scale in zip(sides, scales, strict=True))
    region = np.random.default_rng(seed).integers(0, levels, (height, width, 3), np.uint8) * (
        255 // (levels - 1)
    )
    expected = cv2.resize(region, sides[::-1], interpolation=cv2.INTER_AREA)
    patch = np.empty((*sides, 3), np.uint8)
    decode.shrink(region, patch)
    assert np.array_equal(patch, expected)


@needs_module
def test_shares_outside_the_pixels_are_refused() -> None:
    from eosin.slides import _jpeg_part as module

    region, patch = np.zeros((9, 9, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    right = decode._shares(9, 4)
    for columns, rows in (
        (decode._shares(10, 4), right),
        (right, decode._shares(9, 5)),
        (b"", right),
        (right, b""),
    ):
        with pytest.raises(ValueError, match="outside"):
            module.shrink(region, 9, patch, 4, columns, rows)
    module.shrink(region, 9, patch, 4, right, right)


def check_damaged(seed: int, num_changes: int, denominator: int) -> None:
    """Where the whole tile can still be decoded, a part of it is the same; else there may be an error."""
    rng = np.random.default_rng(seed)
    sampling = list(_SAMPLINGS.values())[seed % len(_SAMPLINGS)]
    interval = (0, 0, 5)[seed % 3]
    level, data = encoded(
        96, 96, seed % 4, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, interval
    )
    changed = bytearray(data)
    for _ in range(num_changes):
        at = int(rng.integers(0, len(changed) if rng.random() < 0.5 else min(700, len(changed))))
        action = rng.integers(3)
        if action == 0:
            changed[at] = rng.integers(256)
        elif action == 1:
            del changed[at : at + int(rng.integers(1, 20))]
        else:
            changed[at:at] = rng.bytes(int(rng.integers(1, 6)))
    side = 96 // denominator
    for x, y, w, h in boxes(side, side, seed, 2):
        try:
            whole = decode_tile(level, bytes(changed), denominator)
        except SlideError:
            whole = None
        try:
            part = part_of(level, bytes(changed), denominator, (x, y, w, h))
        except SlideError:
            assert whole is None
            continue
        assert whole is None or np.array_equal(part, whole[y : y + h, x : x + w])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 4), denominator=st.sampled_from([1, 2, 8]))
def test_damage_neither_crashes_nor_changes_what_the_whole_tile_shows(
    seed: int, num_changes: int, denominator: int
) -> None:
    check_damaged(seed, num_changes, denominator)


@pytest.mark.long
def test_damage_for_a_long_time() -> None:
    for seed in range(50_000):
        check_damaged(seed, 1 + seed % 6, (1, 2, 4, 8)[seed // 7 % 4])
