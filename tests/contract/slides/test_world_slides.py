"""Layouts that slides of the world come in, each pixel against another reader's or what was written."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, itemize_fragment, itemize_frame
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from eosin.config.patches import PatchesConfig
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.patches.request import PatchRequest
from eosin.patches.stream import open_reader
from eosin.slides.errors import SlideError
from tests.contract.slides.test_dicom import opened, reason, whole
from tests.contract.slides.test_silent_faults import PICTURE, written
from tests.support.indexing import config_for, index
from tests.support.regions import regions_of
from tests.support.slide_files import (
    EXPLICIT,
    HTJ2K,
    JPEG,
    JPEG2000,
    JPEGLS,
    JPEGXL,
    RLE,
    halved,
    picture,
    read_dicom,
    tissue_picture,
    write_dicom,
    write_ome,
    write_tiff,
)

Pixels = npt.NDArray[np.uint8]
FINEST = picture(701, 903)


def refragment(dataset: Dataset, table: str, *, only: int | None = None) -> None:
    """Cut every frame (or the one named) into three fragments."""
    frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
    items, offsets = [], []
    at = 0
    for number, frame in enumerate(frames):
        offsets.append(at)
        num = 3 if only is None or number == only else 1
        for item in itemize_frame(frame, num):
            items.append(item)
            at += len(item)
    basic = struct.pack(f"<{len(offsets)}I", *offsets) if table == "basic" else b""
    dataset.PixelData = itemize_fragment(basic) + b"".join(items)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True


@pytest.mark.parametrize("syntax", [JPEG, JPEG2000, JPEGLS, JPEGXL, HTJ2K, RLE])
@pytest.mark.parametrize(("table", "only"), [("basic", None), ("none", None), ("basic", 7), ("none", 7)])
def test_frames_in_several_fragments(tmp_path: Path, syntax: str, table: str, only: int | None) -> None:
    write_dicom(tmp_path / "whole.dcm", FINEST, syntax=syntax)
    right = whole(opened(tmp_path, "whole.dcm"))
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=syntax,
                change=lambda dataset: refragment(dataset, table, only=only))  # fmt: skip
    np.testing.assert_array_equal(whole(opened(tmp_path, "a.dcm")), right)


def test_patches_of_fragmented_frames_are_those_of_whole_ones(tmp_path: Path) -> None:
    found = []
    for name, change in (("whole", lambda _: None), ("cut", lambda dataset: refragment(dataset, "basic"))):
        folder = tmp_path / name
        folder.mkdir()
        write_dicom(folder / "a.dcm", tissue_picture(900, 900), syntax=JPEG, change=change, mpp=(0.5, 0.5))
        index(config_for(folder, tmp_path / f"{name}-index"))
        snapshot = open_snapshot(str(tmp_path / f"{name}-index"))
        for mpp in (0.5, 1.0):
            config = PatchesConfig.model_validate({"patch_px": 224, "mpp": (mpp,)})
            for share_tiles in (False, True):
                with open_reader(snapshot, config, share_tiles=share_tiles) as reader:
                    (patch,) = reader.read([PatchRequest(0, 0, 0, 200, 210, mpp)])
                assert not isinstance(patch, SlideError), patch
                found.append(patch)
    for one, other in zip(found[:4], found[4:], strict=True):
        np.testing.assert_array_equal(one, other)


def end_with_the_level(dataset: Dataset) -> None:
    """As wsidicom 0.31 writes levels that it makes: JPEG tiles at the edges hold no more than the level."""
    frames = []
    for number, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=48)):
        pixels = imagecodecs.jpeg8_decode(frame, colorspace="YCBCR", outcolorspace="YCBCR")
        pixels = np.ascontiguousarray(
            pixels[: 64 if number >= 40 else None, : 16 if number % 8 == 7 else None]
        )
        frames.append(imagecodecs.jpeg8_encode(pixels, level=95, colorspace="YCBCR", outcolorspace="YCBCR",
                                               subsampling="444"))  # fmt: skip
    dataset.PixelData = encapsulate(frames)


def test_tiles_that_end_where_the_level_does(tmp_path: Path) -> None:
    found = {}
    for name in ("whole", "cut"):
        folder = tmp_path / name
        folder.mkdir()
        write_dicom(folder / "a.dcm", tissue_picture(701, 903, seed=7), mpp=(0.5, 0.5))
        if name == "cut":
            dataset = read_dicom(folder / "a.dcm")
            end_with_the_level(dataset)
            dataset.save_as(folder / "a.dcm")
        index(config_for(folder, tmp_path / f"{name}-index"))
        snapshot = open_snapshot(str(tmp_path / f"{name}-index"))
        config = PatchesConfig.model_validate({"patch_px": 112, "mpp": (0.5, 1.0)})
        with open_reader(snapshot, config) as reader:
            found[name] = reader.read([PatchRequest(0, 0, 0, 679, 477, mpp) for mpp in (0.5, 1.0)])
    for one, other in zip(found["whole"], found["cut"], strict=True):
        assert isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
        assert np.abs(one.astype(int) - other).max() <= 8


def place(dataset: Dataset, x_mm: float, y_mm: float) -> None:
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = x_mm, y_mm
    dataset.TotalPixelMatrixOriginSequence = DicomSequence([origin])


def test_two_places_of_one_series_do_not_become_one_pyramid(tmp_path: Path) -> None:
    other = picture(640, 640, seed=5)
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT)
    write_dicom(tmp_path / "b.dcm", halved(FINEST), level=1, syntax=EXPLICIT)
    write_dicom(tmp_path / "c.dcm", other, syntax=EXPLICIT)
    regions = opened(tmp_path, "a.dcm", "b.dcm", "c.dcm")
    assert len(regions.header.levels) == 2
    np.testing.assert_array_equal(whole(regions, 1), halved(FINEST))


def test_pictures_of_one_shape_at_two_places_do_not_mix(tmp_path: Path) -> None:
    one, other = picture(640, 640, seed=5), picture(638, 638, seed=6)
    for name, level, pixels, x_mm in (("a", 0, one, 10.0), ("b", 1, halved(one), 10.0), ("c", 0, other, 30.0),
                                      ("d", 1, halved(other), 30.0)):  # fmt: skip
        write_dicom(tmp_path / f"{name}.dcm", pixels, level=level, syntax=EXPLICIT,
                    change=lambda dataset, x_mm=x_mm: place(dataset, x_mm, 5.0))  # fmt: skip
    regions = opened(tmp_path, "c.dcm", "d.dcm", "a.dcm", "b.dcm")
    assert [level.width_px for level in regions.header.levels] == [640, 320]
    np.testing.assert_array_equal(whole(regions, 1), halved(one))


def test_a_lost_part_of_a_concatenation_with_positions_is_named(tmp_path: Path) -> None:
    write_dicom(tmp_path / "whole.dcm", FINEST, syntax=EXPLICIT, sparse=True)
    size = 3 * 128**2
    for number, (start, end) in enumerate(((0, 20), (20, 48))):
        dataset = read_dicom(tmp_path / "whole.dcm")
        dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = "1.2.99", start
        dataset.InConcatenationTotalNumber, dataset.InConcatenationNumber = 2, number + 1
        dataset.NumberOfFrames = end - start
        dataset.PixelData = dataset.PixelData[start * size : end * size]
        groups = dataset.PerFrameFunctionalGroupsSequence
        dataset.PerFrameFunctionalGroupsSequence = groups[start:end]
        dataset.save_as(tmp_path / f"part{number}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(whole(opened(tmp_path, "part1.dcm", "part0.dcm")), FINEST)
    lost = reason(tmp_path, "part1.dcm")
    assert lost.reason == "truncated" and "1 of 2 parts" in lost.message


def test_of_two_optical_paths_the_first_is_read(tmp_path: Path) -> None:
    def two_paths(dataset: Dataset) -> None:
        dataset.NumberOfOpticalPaths = 2
        dataset.NumberOfFrames = 2 * dataset.NumberOfFrames
        dataset.PixelData = dataset.PixelData + bytes(len(dataset.PixelData))
        dataset["PixelData"].VR = "OB"

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, change=two_paths)
    np.testing.assert_array_equal(whole(opened(tmp_path, "a.dcm")), FINEST)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("compression", ["deflate", "lzw", "none", "jpeg2000"])
def test_alpha_of_each_kind_is_what_openslide_shows(tmp_path: Path, kind: str, compression: str) -> None:
    alpha = np.zeros((*PICTURE.shape[:2], 1), np.uint8)
    alpha[:512], alpha[512:768] = 255, 128
    colour = PICTURE
    if kind == "assocalpha":
        colour = (PICTURE.astype(np.uint16) * alpha // 255).astype(np.uint8)
    rgba = np.concatenate([colour, alpha], axis=2)

    def write(path: Path) -> None:
        write_tiff(
            path, [rgba], compression=None if compression == "none" else compression, extrasamples=[kind]
        )

    snapshot, row = written(tmp_path, "a.tif", write)
    assert row.status == "ok", row.detail
    found = regions_of(snapshot, row).read_region((0, 0), 0, (1024, 1024))
    cover = alpha.astype(np.float64) / 255
    right = PICTURE if kind == "unspecified" else PICTURE * cover + 255 * (1 - cover)
    assert np.abs(found.astype(float) - right).max() <= 2
    if kind == "assocalpha" and compression == "deflate":
        with openslide.OpenSlide(tmp_path / "slides" / "a.tif") as oracle:
            shown = np.asarray(oracle.read_region((0, 0), 0, (1024, 1024)).convert("RGBA")).astype(float)
        cover = shown[..., 3:] / 255
        assert np.abs(found - (shown[..., :3] * cover + 255 * (1 - cover))).max() <= 3


def write_ome_images(path: Path, images: list[tuple[str, list[Pixels]]]) -> None:
    """OME-TIFF of several named images, each a pyramid in SubIFDs."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, levels in images:
            metadata = {"axes": "YXS", "Name": name, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5,
                        "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}  # fmt: skip
            common = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
            writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **common)
            for pixels in levels[1:]:
                writer.write(pixels, subfiletype=1, **common)


def write_ome_planes(
    path: Path, planes: Pixels, axes: str, order: str = "XYCZT", num_levels: int = 2
) -> None:
    """OME-TIFF of several planes, their directories in `order`, each a pyramid in SubIFDs."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        common = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
        metadata = {"axes": axes, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(planes, subifds=num_levels - 1, metadata=metadata, **common)
        for i in range(1, num_levels):
            writer.write(np.ascontiguousarray(planes[..., :: 2**i, :: 2**i, :]), subfiletype=1, **common)
    path.write_bytes(path.read_bytes().replace(b'"XYCZT"', f'"{order}"'.encode()))


@pytest.mark.parametrize(
    ("axes", "order", "shape", "right", "said"),
    [
        ("ZYXS", "XYCZT", (3,), 1, "the middle one of 3 focal planes"),
        ("ZYXS", "XYCZT", (5,), 2, "the middle one of 5 focal planes"),
        ("ZYXS", "XYCZT", (2,), 0, "the middle one of 2 focal planes"),
        ("TYXS", "XYCZT", (3,), 0, "the first of 3 time points"),
        ("TZYXS", "XYCZT", (2, 3), 1, "the middle one of 3 focal planes is read; the first of 2 time points"),
        ("ZTYXS", "XYCTZ", (3, 2), 2, "the middle one of 3 focal planes is read; the first of 2 time points"),
    ],
)
@pytest.mark.parametrize("num_levels", [1, 3])
def test_of_the_planes_of_an_ome_tiff_the_middle_one_is_read(
    tmp_path: Path, axes: str, order: str, shape: tuple[int, ...], right: int, said: str, num_levels: int
) -> None:
    planes = np.stack([tissue_picture(1024, 1024, seed=i) for i in range(int(np.prod(shape)))])
    snapshot, row = written(tmp_path, "a.ome.tif", lambda path: write_ome_planes(
        path, planes.reshape(*shape, *planes.shape[1:]), axes, order, num_levels))  # fmt: skip
    assert said in row.detail and len(row.header.levels) == num_levels
    found = regions_of(snapshot, row)
    np.testing.assert_array_equal(found.read_region((0, 0), 0, (1024, 1024)), planes[right])
    if num_levels > 1:
        shown = found.read_region((0, 0), 2, (256, 256))
        np.testing.assert_array_equal(shown, planes[right][::4, ::4])


def test_of_the_focal_planes_of_an_aperio_slide_the_middle_one_is_read(tmp_path: Path) -> None:
    planes = [tissue_picture(1024, 1024, seed=i) for i in range(3)]

    def write(path: Path) -> None:
        for number, z in enumerate((0, 2.5, -2.5)):
            for times in (0, 1):
                text = f"Aperio Image Library|AppMag = 20|MPP = 0.5|OffsetZ = {z}"
                tifffile.imwrite(
                    path, halved(planes[number], times), append=number + times > 0, tile=(128, 128),
                    photometric="rgb", compression="deflate", description=text, metadata=None,
                )  # fmt: skip

    snapshot, row = written(tmp_path, "a.svs", write)
    assert "the middle one of 3 focal planes" in row.detail
    found = regions_of(snapshot, row)
    np.testing.assert_array_equal(found.read_region((0, 0), 0, (1024, 1024)), planes[0])
    np.testing.assert_array_equal(found.read_region((0, 0), 1, (512, 512)), halved(planes[0]))


def test_a_resolution_in_a_comment_is_none(tmp_path: Path) -> None:
    image = '<Image><Pixels SizeX="1024" SizeY="1024" PhysicalSizeX="{0}" PhysicalSizeY="{0}"/></Image>'
    text = f"<OME><!-- {image.format(9)} -->{image.format(0.5)}</OME>"
    _, row = written(tmp_path, "a.ome.tif", lambda path: write_tiff(path, [PICTURE], description=text))
    assert row.header.mpp_x == 0.5 and not row.detail


@pytest.mark.parametrize("macro", [(300, 1536), (1300, 400), (1024, 1152)])
@pytest.mark.parametrize("num_levels", [1, 3])
def test_the_slide_of_an_ome_tiff_is_no_macro(
    tmp_path: Path, macro: tuple[int, int], num_levels: int
) -> None:
    levels = [halved(PICTURE, i) if i else PICTURE for i in range(num_levels)]
    shown = picture(*macro, seed=9)
    snapshot, row = written(tmp_path, "a.ome.tif", lambda path: write_ome_images(
        path, [("macro", [shown]), ("label", [picture(256, 256)]), ("Image 1", levels)]))  # fmt: skip
    assert [level.width_px for level in row.header.levels] == [1024 >> i for i in range(num_levels)]
    found = regions_of(snapshot, row).read_region((0, 0), 0, (1024, 1024))
    np.testing.assert_array_equal(found, PICTURE)


def test_a_macro_of_the_slides_shape_is_no_level(tmp_path: Path) -> None:
    _, row = written(tmp_path, "a.ome.tif", lambda path: write_ome_images(
        path, [("overview", [picture(256, 256)]), ("x", [PICTURE])]))  # fmt: skip
    assert [level.width_px for level in row.header.levels] == [1024]


def test_a_tiled_macro_of_an_aperio_slides_shape_is_no_level(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        with tifffile.TiffWriter(path) as tiff:
            for pixels, said in ((PICTURE, "(256x256)|MPP = 0.5"), (PICTURE[::2, ::2], "-> 512x512"),
                                 (255 - PICTURE[:400, :400], "macro 400x400")):  # fmt: skip
                tiff.write(pixels, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None,
                           description=f"Aperio Image Library\r\n{said}")  # fmt: skip

    _, row = written(tmp_path, "a.svs", write)
    assert [level.width_px for level in row.header.levels] == [1024, 512]


def test_an_ome_element_may_have_a_prefix(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        write_ome(path, [PICTURE, halved(PICTURE)], mpp=0.5)
        text = tifffile.tiffcomment(path)
        prefixed = re.sub(r"<(/?)(?=[A-Z])", r"<\1ome:", text).replace("xmlns=", "xmlns:ome=")
        tifffile.tiffcomment(path, prefixed.encode())

    _, row = written(tmp_path, "a.ome.tif", write)
    assert (row.header.format, row.header.mpp_x, row.status) == ("ome-tiff", 0.5, "ok")


def test_a_wide_tiled_thumbnail_before_a_generic_slide(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            common = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate", "metadata": None,
                      "resolutionunit": 3}  # fmt: skip
            writer.write(picture(256, 1300), description="Macro", resolution=(1e3, 1e3), **common)
            writer.write(PICTURE, resolution=(2e4, 2e4), **common)
            writer.write(halved(PICTURE), subfiletype=1, resolution=(1e4, 1e4), **common)

    _, row = written(tmp_path, "a.tif", write)
    assert [level.width_px for level in row.header.levels] == [1024, 512]
    assert row.header.mpp_x == pytest.approx(0.5)


@pytest.mark.parametrize("tile", [(400, 464), (16, 1040), (272, 384)])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_patches_over_odd_tiles(tmp_path: Path, tile: tuple[int, int], compression: str) -> None:
    def write(path: Path) -> None:
        tifffile.imwrite(path, PICTURE, photometric="rgb", tile=tile, compression=compression,
                         resolution=(2e4, 2e4), resolutionunit=3)  # fmt: skip

    snapshot, row = written(tmp_path, "a.tif", write)
    assert row.status == "ok", row.detail
    right = tifffile.imread(tmp_path / "slides" / "a.tif")
    config = PatchesConfig.model_validate({"patch_px": 224, "mpp": (0.5,)})
    with open_reader(snapshot, config) as reader:
        (patch,) = reader.read([PatchRequest(0, 0, 0, 301, 433, 0.5)])
    assert not isinstance(patch, SlideError)
    assert np.abs(patch.astype(int) - right[433:657, 301:525]).max() <= 1


@pytest.mark.parametrize("levels", [2, 3])
def test_absent_tiles_two_levels_deep_show_what_the_finest_shows(tmp_path: Path, levels: int) -> None:
    from tests.contract.slides.test_silent_faults import without_tiles
    from tests.support.slide_files import write_aperio

    large = np.kron(PICTURE, np.ones((2, 2, 1), np.uint8))
    pictures = [halved(large, i) if i else large for i in range(levels)]

    def write(path: Path) -> None:
        write_aperio(path, pictures, mpp=0.25, compression="jpeg")
        for page in range(1, levels):
            without_tiles(path, page, keep=1)

    snapshot, _ = written(tmp_path, "a.svs", write)
    mpp = 0.25 * 2 ** (levels - 1)
    config = PatchesConfig.model_validate({"patch_px": 128, "mpp": (mpp,)})
    with open_reader(snapshot, config) as reader:
        (patch,) = reader.read([PatchRequest(0, 0, 0, 640, 700, mpp)])
    with openslide.OpenSlide(tmp_path / "slides" / "a.svs") as oracle:
        right = np.asarray(oracle.read_region((640, 700), levels - 1, (128, 128)))[..., :3]
    assert not isinstance(patch, SlideError)
    assert np.abs(patch.astype(int) - right).mean() < 3


def snapshot_of(folder: Path, write: Callable[[Path], object]) -> tuple[Snapshot, SlideRow]:
    return written(folder, "a.tif", write)


@pytest.mark.parametrize("padding", [(3, 3, 3), (12, 6, 18), (0, 0, 0), (20, 22, 19)])
def test_scanner_padding_beside_pale_glass_is_no_tissue(
    tmp_path: Path, padding: tuple[int, int, int]
) -> None:
    """Whole columns of a scan that were never looked at, and a noisy black strip."""
    rng = np.random.default_rng(1)
    pixels = np.full((1536, 1536, 3), (236, 233, 238), np.uint8)
    pixels[256:1280, 256:1280] = PICTURE
    right = snapshot_of_area(tmp_path / "right", pixels)
    pixels[:, 1300:] = padding
    noisy = np.array(padding) + rng.integers(-2, 3, (60, 1536, 3))
    pixels[:60] = np.clip(noisy, 0, 255).astype(np.uint8)
    assert snapshot_of_area(tmp_path / "padded", pixels) == pytest.approx(right, rel=0.1)


def snapshot_of_area(folder: Path, pixels: Pixels) -> float:
    folder.mkdir()
    return written(folder, "a.tif", lambda path: write_tiff(
        path, [pixels], mpp=2.0, compression="deflate"))[1].tissue_mm2  # fmt: skip


def at_heights(dataset: Dataset, z_mm: Callable[[int], float]) -> None:
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSlideSequence[0].ZOffsetInSlideCoordinateSystem = z_mm(number)


def test_a_scanner_that_follows_the_tissue_gives_every_tile_its_height(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, sparse=True,
                change=lambda dataset: at_heights(dataset, lambda number: number * 1e-4))  # fmt: skip
    np.testing.assert_array_equal(whole(opened(tmp_path, "a.dcm")), FINEST)


def lose_position(dataset: Dataset, number: int) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[number].PlanePositionSlideSequence


def give_twice(dataset: Dataset) -> None:
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[7].PlanePositionSlideSequence = groups[3].PlanePositionSlideSequence


FAULTS: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "first frame without a position": (lambda dataset: lose_position(dataset, 0), "corrupt-header"),
    "last frame without a position": (lambda dataset: lose_position(dataset, -1), "corrupt-header"),
    "two frames at one place": (give_twice, "corrupt-header"),
    "seven of eight bits": (lambda dataset: setattr(dataset, "BitsStored", 7), "unsupported-pixels"),
    "signed samples": (lambda dataset: setattr(dataset, "PixelRepresentation", 1), "unsupported-pixels"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_would_be_shown_wrong_is_refused(tmp_path: Path, name: str) -> None:
    change, right = FAULTS[name]
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, sparse=True, change=change)
    assert reason(tmp_path, "a.dcm").reason == right


def test_what_is_deflated_as_a_whole_is_refused_before_it_is_unfolded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three megabytes may unfold to three gigabytes."""

    def deflated(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, change=deflated)
    assert read_dicom(tmp_path / "a.dcm").TotalPixelMatrixColumns == FINEST.shape[1]
    monkeypatch.delattr(zlib, "decompress")
    found = reason(tmp_path, "a.dcm")
    assert found.reason == "unsupported-compression" and "deflated" in found.message


@pytest.mark.parametrize("syntax", [JPEG, JPEG2000, JPEGLS, JPEGXL, HTJ2K, RLE])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_frames_that_end_early_are_no_picture(tmp_path: Path, syntax: str, share: float) -> None:
    def cut(dataset: Dataset) -> None:
        frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
        dataset.PixelData = encapsulate([frame[: int(share * len(frame))] for frame in frames])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=syntax, change=cut)
    regions = opened(tmp_path, "a.dcm")
    with pytest.raises(SlideError) as caught:
        whole(regions)
    assert caught.value.reason == "corrupt-tile"
