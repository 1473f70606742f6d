"""Faults that once gave wrong pixels, levels or resolutions with status `ok`, in every format."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile

from eosin.config.patches import PatchesConfig
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.observability import RunLog
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream, open_reader
from eosin.slides.errors import SlideError
from tests.support.indexing import config_for, index
from tests.support.regions import regions_of, tiles_of_level
from tests.support.samples import sample
from tests.support.slide_files import halved, tissue_picture, write_aperio, write_ome, write_tiff

Pixels = npt.NDArray[np.uint8]
PICTURE = tissue_picture(1024, 1024, seed=3)


def indexed(folder: Path) -> tuple[Snapshot, SlideRow]:
    """The one slide of a folder."""
    out = folder.with_name(f"{folder.name}-index")
    try:
        index(config_for(folder, out, "index.max_mpp=4"))
    except Exception as error:
        assert "no slide in" in str(error)
    snapshot = open_snapshot(str(out))
    (row,) = snapshot.rows
    return snapshot, row


def of_sample(tmp_path: Path, name: str) -> tuple[Snapshot, SlideRow]:
    path = sample("inputs", "slides", name)
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / name).symlink_to(path)
    return indexed(folder)


def written(tmp_path: Path, name: str, write: Callable[[Path], object]) -> tuple[Snapshot, SlideRow]:
    folder = tmp_path / "slides"
    folder.mkdir()
    write(folder / name)
    return indexed(folder)


def sizes(row: SlideRow) -> list[tuple[int, int]]:
    return [(level.width_px, level.height_px) for level in row.header.levels]


@pytest.mark.parametrize(
    ("name", "widths", "mpp"),
    [
        ("svs_comma_mpp.svs", [2048, 1024, 512], 0.5),
        ("thumb_first.tif", [1024, 512, 256], 0.5),
        ("ome_macro_first.ome.tif", [1024, 512, 256], 0.5),
    ],
)
def test_levels_and_resolution_of_the_small_inputs(
    tmp_path: Path, name: str, widths: list[int], mpp: float
) -> None:
    _, row = of_sample(tmp_path, name)
    assert row.status == "ok", row.detail
    assert [width for width, _ in sizes(row)] == widths
    assert (row.header.mpp_x, row.header.mpp_y) == pytest.approx((mpp, mpp))


def test_the_tissue_on_a_tinted_black_background(tmp_path: Path) -> None:
    _, row = of_sample(tmp_path, "black_bg_tinted.tif")
    assert row.tissue_mm2 == pytest.approx(0.18, abs=0.03)


def test_transparent_is_white(tmp_path: Path) -> None:
    snapshot, row = of_sample(tmp_path, "rgba.tif")
    corner = regions_of(snapshot, row).read_region((0, 0), 0, (8, 8))
    assert (corner == 255).all()


def test_absent_tiles_of_a_level_come_from_the_finer_one_as_openslide_has_it(tmp_path: Path) -> None:
    snapshot, _ = of_sample(tmp_path, "svs_zero_level1.svs")
    config = PatchesConfig.model_validate({"patch_px": 256, "mpp": (1.0,)})
    places = [(512 * (i % 4), 512 * (i // 4)) for i in (5, 6, 9, 10)]
    requests = [PatchRequest(0, n, 0, x, y, 1.0) for n, (x, y) in enumerate(places)]
    for share_tiles in (False, True):
        with open_reader(snapshot, config, share_tiles=share_tiles) as reader:
            found = reader.read(requests)
        with openslide.OpenSlide(sample("inputs", "slides", "svs_zero_level1.svs")) as oracle:
            for (x, y), patch in zip(places, found, strict=True):
                assert not isinstance(patch, SlideError) and patch.mean() < 240
                right = np.asarray(oracle.read_region((x, y), 1, (256, 256)))[..., :3]
                assert np.abs(patch.astype(int) - right).mean() < 2


def test_the_mask_is_made_of_what_the_finer_level_shows(tmp_path: Path) -> None:
    whole = written(tmp_path, "a.svs", lambda path: write_aperio(path, [PICTURE, halved(PICTURE)], mpp=4.0,
                                                                 compression="jpeg"))[1]  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    snapshot, row = written(other, "a.svs", lambda path: without_tiles(
        write_aperio(path, [PICTURE, halved(PICTURE)], mpp=4.0, compression="jpeg"), page=-1))  # fmt: skip
    assert row.status == "ok"
    assert row.tissue_mm2 == pytest.approx(whole.tissue_mm2, rel=0.05)
    assert tiles_of_level(snapshot, row, 1)["size_bytes"].min() == 0


def without_tiles(path: Path, page: int, *, keep: int = 1) -> None:
    """Set the byte counts of a page's tiles to 0, but for the last `keep`."""
    with tifffile.TiffFile(path) as tiff:
        tiled = [each for each in tiff.pages if each.is_tiled]
        tag = tiled[page].tags[325]
        place, width = tag.valueoffset, tag.dtype.value
    size = {3: 2, 4: 4, 16: 8}[int(width)]
    data = bytearray(path.read_bytes())
    data[place : place + size * (tag.count - keep)] = bytes(size * (tag.count - keep))
    path.write_bytes(bytes(data))


def test_a_patch_of_absent_tiles_alone_is_drawn_again(tmp_path: Path) -> None:
    snapshot, _ = written(tmp_path, "a.svs", lambda path: without_tiles(
        write_aperio(path, [PICTURE], mpp=0.5, compression="jpeg"), page=0, keep=32))  # fmt: skip
    config = PatchesConfig.model_validate({"patch_px": 64, "mpp": (0.5,), "min_foreground": 0.0})
    rejected = []
    sampler = Sampler(snapshot, config, seed=1)
    with PatchStream(sampler, RunLog("test"), on_reject=lambda _, error: rejected.append(error)) as stream:
        (batch,) = stream.batches([(0, range(32))])
    assert {error.reason for error in rejected} == {"absent-tiles"}
    assert not (batch.pixels == 255).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("colour", [(0, 0, 0), (3, 3, 3), (12, 6, 18)])
def test_black_around_the_slide_is_no_tissue(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """A scan on black, with a black strip through its glass: the tissue is what it is on white."""
    black = np.full((1536, 1536, 3), colour, np.uint8)
    black[256:1280, 256:1280] = PICTURE
    black[:, 700:740] = colour
    white = np.full_like(black, 240)
    white[256:1280, 256:1280] = PICTURE
    white[256:1280, 700:740] = 240
    found = []
    for name, pixels in (("black", black), ("white", white)):
        folder = tmp_path / name
        folder.mkdir()
        write = lambda path, pixels=pixels: write_tiff(path, [pixels], mpp=2.0, compression="deflate")  # noqa: E731
        found.append(written(folder, "a.tif", write)[1].tissue_mm2)
    assert found[0] == pytest.approx(found[1], rel=0.1)


@pytest.mark.parametrize("tint", [(20, 40, 255), (60, 255, 60), (70, 70, 70)])
def test_fluorescence_is_not_brightfield(tmp_path: Path, tint: tuple[int, int, int]) -> None:
    glow = (255 - PICTURE.min(axis=2)).astype(np.float64)[..., None] / 255 * np.array(tint)
    glow[PICTURE.min(axis=2) > 200] = 4
    _, row = written(tmp_path, "a.tif", lambda path: write_tiff(
        path, [glow.astype(np.uint8)], mpp=2.0, compression="deflate"))  # fmt: skip
    assert row.status == "not-brightfield", row.detail


@pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw"])
def test_print_resolution_is_none_whatever_the_codec(tmp_path: Path, compression: str) -> None:
    _, row = written(tmp_path, "a.tif", lambda path: write_tiff(
        path, [PICTURE], mpp=25_400 / 72, compression=compression))  # fmt: skip
    assert row.status == "no-mpp"


@pytest.mark.parametrize("compression", ["zstd", "packbits", "webp"])
def test_losslessly_packed_tiles_are_read(tmp_path: Path, compression: str) -> None:
    packed = {
        "compression": compression,
        "compressionargs": {"lossless": True} if compression == "webp" else {},
    }
    snapshot, row = written(tmp_path, "a.tif", lambda path: write_tiff(path, [PICTURE], mpp=0.5, **packed))
    assert row.header.access == "tiles"
    np.testing.assert_array_equal(regions_of(snapshot, row).read_region((0, 0), 0, (1024, 1024)), PICTURE)


def write_with_sub_ifds(path: Path, levels: Sequence[Pixels]) -> None:
    """As libvips writes a pyramid with `subifd`: the coarser levels hang on the first page."""
    with tifffile.TiffWriter(path) as writer:
        for number, pixels in enumerate(levels):
            writer.write(
                pixels, tile=(128, 128), photometric="rgb", metadata=None, compression="deflate",
                resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
                **({"subfiletype": 1} if number else {"subifds": len(levels) - 1}),
            )  # fmt: skip


def test_levels_in_sub_ifds_are_levels(tmp_path: Path) -> None:
    levels = [PICTURE, halved(PICTURE), halved(PICTURE, 2)]
    snapshot, row = written(tmp_path, "a.tif", lambda path: write_with_sub_ifds(path, levels))
    assert row.status == "ok", row.detail
    assert sizes(row) == [(1024, 1024), (512, 512), (256, 256)] and row.header.mpp_x == 0.5
    regions = regions_of(snapshot, row)
    for number, pixels in enumerate(levels):
        side = len(pixels)
        np.testing.assert_array_equal(regions.read_region((0, 0), number, (side, side)), pixels)


def test_a_mask_in_a_sub_ifd_is_no_level(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        write_with_sub_ifds(path, [PICTURE, np.full_like(halved(PICTURE), 255), halved(PICTURE)])
        reduced, mask = (struct.pack("<HHII", 254, 4, 1, kind) for kind in (1, 5))
        path.write_bytes(path.read_bytes().replace(reduced, mask, 1))

    snapshot, row = written(tmp_path, "a.tif", write)
    assert sizes(row) == [(1024, 1024), (512, 512)]
    found = regions_of(snapshot, row).read_region((0, 0), 1, (512, 512))
    np.testing.assert_array_equal(found, halved(PICTURE))


@pytest.mark.parametrize("says", [True, False])
def test_a_picture_of_one_bit_a_pixel_is_refused(tmp_path: Path, says: bool) -> None:
    """TIFF's own default is one bit, where nothing is said."""

    def write(path: Path) -> None:
        write_tiff(path, [PICTURE[..., 0] > 128], mpp=0.5, photometric="minisblack")
        if not says:  # the tag becomes one that nobody knows
            path.write_bytes(
                path.read_bytes().replace(struct.pack("<HH", 258, 3), struct.pack("<HH", 259 + 6, 3))
            )

    _, row = written(tmp_path, "a.tif", write)
    assert row.status == "unsupported-pixels" and "[1] bits" in row.detail


@pytest.mark.parametrize("mpp", [0.0005, 0.0, 353.0])
def test_a_resolution_that_no_scanner_has_is_none(tmp_path: Path, mpp: float) -> None:
    _, row = written(
        tmp_path, "a.svs", lambda path: write_aperio(path, [PICTURE], mpp=mpp, compression="jpeg")
    )
    assert row.status == "no-mpp"


def test_odd_tile_sides_of_one_large_level(tmp_path: Path) -> None:
    """No side has a divisor, so that averaging by whole tiles is not possible."""
    large = np.kron(PICTURE, np.ones((6, 6, 1), np.uint8))[:6000, :5900]

    def write(path: Path) -> None:
        tifffile.imwrite(path, large, photometric="rgb", tile=(400, 464), compression="deflate",
                         resolution=(2e4, 2e4), resolutionunit=3)  # fmt: skip

    snapshot, row = written(tmp_path, "a.tif", write)
    assert row.status == "ok", row.detail
    small = tmp_path / "small"
    small.mkdir()
    write_small = lambda path: write_tiff(path, [large], mpp=0.5, compression="deflate")  # noqa: E731
    assert row.tissue_mm2 == pytest.approx(written(small, "a.tif", write_small)[1].tissue_mm2, rel=0.03)
    assert snapshot.rows[0].tissue is not None


def test_ome_without_physical_size_takes_the_resolution_of_the_tiff(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        write_ome(path, [PICTURE], compression="deflate", resolution=(2e4, 2e4), resolutionunit=3)
        path.write_bytes(path.read_bytes().replace(b"PhysicalSize", b"PhysicalSyze"))

    _, row = written(tmp_path, "a.ome.tif", write)
    assert row.status == "ok" and (row.header.mpp_x, row.header.mpp_y) == pytest.approx((0.5, 0.5))


def test_a_valid_slide_that_nothing_here_reads_says_so(tmp_path: Path) -> None:
    _, row = written(tmp_path, "a.vsi", lambda path: path.write_bytes(b"II*\0" + bytes(200)))
    assert row.status == "unsupported-format" and "export it" in row.detail


def test_jpeg_2000_of_code_33004_is_refused(tmp_path: Path) -> None:
    """As libvips 8.14 writes it: YCbCr, transformed once more by the codec, under the name of RGB."""

    def write(path: Path) -> None:
        write_tiff(path, [PICTURE], mpp=0.5, compression="jpeg2000")
        data = path.read_bytes()
        named = struct.pack("<HHII", 259, 3, 1, 34712)
        assert named in data
        path.write_bytes(data.replace(named, struct.pack("<HHII", 259, 3, 1, 33004)))

    _, row = written(tmp_path, "a.tif", write)
    assert row.status == "unsupported-pixels" and "33004" in row.detail


def test_jpeg_2000_of_code_33004_in_an_ome_tiff_is_rgb(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        write_ome(path, [PICTURE], compression="jpeg2000")
        data = path.read_bytes()
        named, lossy = (struct.pack("<H", code) for code in (34712, 33004))
        assert struct.pack("<HH", 259, 3) in data and named in data
        at = data.index(named, data.index(struct.pack("<HH", 259, 3)))
        path.write_bytes(data[:at] + lossy + data[at + 2 :])

    snapshot, row = written(tmp_path, "a.ome.tif", write)
    assert row.status == "ok", row.detail
    found = regions_of(snapshot, row).read_region((0, 0), 0, (1024, 1024))
    np.testing.assert_array_equal(found, PICTURE)


@pytest.mark.parametrize("compression", ["lzw", None, "jpeg"])
def test_bytes_in_reverse_are_not_taken_for_damage(tmp_path: Path, compression: str | None) -> None:
    """FillOrder 2, as tiffcp and ImageMagick write it; JPEG has no such order."""

    def write(path: Path) -> None:
        write_tiff(path, [PICTURE], mpp=0.5, compression=compression, extratags=[(265, 3, 1, 2, True)])
        other, fill_order = (struct.pack("<HHII", number, 3, 1, 2) for number in (265, 266))
        path.write_bytes(path.read_bytes().replace(other, fill_order, 1))

    _, row = written(tmp_path, "a.tif", write)
    assert row.status == ("ok" if compression == "jpeg" else "unsupported-layout"), row.detail


def with_marker(jpeg: bytes, transform: int) -> bytes:
    """A JPEG without JFIF's marker and with Adobe's."""
    segments, at = b"", 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segments += jpeg[at:end] if jpeg[at + 1] not in (0xE0, 0xEE) else b""
        at = end
    return jpeg[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + segments + jpeg[at:]


@pytest.mark.parametrize(("photometric", "transform"), [("ycbcr", 0), ("ycbcr", 1), ("rgb", 0), ("rgb", 1)])
def test_colours_that_header_and_tiles_tell_otherwise(
    tmp_path: Path, photometric: str, transform: int
) -> None:
    """A JPEG of YCbCr whose marker says RGB, or the reverse: OpenSlide and wsidicom show other colours."""
    stored = {1: "ycbcr", 0: "rgb"}[transform]
    cut = [PICTURE[y : y + 256, x : x + 256].copy() for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    tiles = [
        with_marker(imagecodecs.jpeg8_encode(each, colorspace="rgb", outcolorspace=stored), transform)
        for each in cut
    ]

    def write(path: Path) -> None:
        tifffile.imwrite(path, iter(tiles), shape=PICTURE.shape, dtype=np.uint8, tile=(256, 256),
                         compression="jpeg", photometric="ycbcr", subsampling=(1, 1), metadata=None,
                         resolution=(2e4, 2e4), resolutionunit="CENTIMETER")  # fmt: skip
        says_ycbcr, says_rgb = (struct.pack("<HHII", 262, 3, 1, kind) for kind in (6, 2))
        if photometric == "rgb":
            path.write_bytes(path.read_bytes().replace(says_ycbcr, says_rgb, 1))

    snapshot, row = written(tmp_path, "a.tif", write)
    if photometric != stored:
        assert row.status == "unsupported-pixels" and photometric in row.detail
        return
    assert row.status == "ok", row.detail
    found = regions_of(snapshot, row).read_region((0, 0), 0, (1024, 1024))
    assert np.abs(found.astype(int) - PICTURE).mean() < 5


def test_a_slide_that_is_turned_for_display_is_refused(tmp_path: Path) -> None:
    """OpenSlide turns each tile by itself, libvips and tifffile nothing."""
    _, row = written(tmp_path, "a.tif", lambda path: write_tiff(
        path, [PICTURE], mpp=0.5, compression="deflate", extratags=[(274, 3, 1, 3, True)]))  # fmt: skip
    assert row.status == "unsupported-layout" and "turned" in row.detail
