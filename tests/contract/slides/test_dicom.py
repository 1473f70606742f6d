"""DICOM as archives and vendors write it, against wsidicom and OpenSlide; else against what was written."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from wsidicom import WsiDicom

from eosin.config.index import SlidesConfig
from eosin.errors import UserError
from eosin.index.snapshot import open_snapshot
from eosin.index.sources import figures_of, require_slides
from eosin.slides.errors import SlideError
from tests.support.indexing import config_for, index, make_slides, rows_of, statuses
from tests.support.regions import Regions, read_header, regions_of
from tests.support.samples import sample
from tests.support.slide_files import (
    EXPLICIT,
    HTJ2K,
    JPEG,
    JPEG2000,
    JPEGLS,
    JPEGXL,
    RLE,
    as_tiff_too,
    halved,
    picture,
    read_dicom,
    tissue_picture,
    write_dicom,
    write_tiff,
)

Pixels = npt.NDArray[np.uint8]
FINEST = picture(701, 903)


def opened(folder: Path, *names: str) -> Regions:
    from eosin.storage import open_store

    store = open_store(str(folder))
    return Regions(store, *read_header(store, [store.head(name) for name in names]))


def whole(regions: Regions, level: int = 0) -> Pixels:
    found = regions.header.levels[level]
    return regions.read_region((0, 0), level, (found.width_px, found.height_px))


def reason(folder: Path, *names: str) -> SlideError:
    with pytest.raises(SlideError) as caught:
        opened(folder, *names)
    return caught.value


def indexed(folder: Path, out: Path, **options: object) -> dict[str, Regions]:
    index(config_for(folder, out))
    snapshot = open_snapshot(str(out))
    return {row.slide: regions_of(snapshot, row) for row in snapshot.rows if row.status == "ok"}


def by_wsidicom(folder: Path) -> list[Pixels]:
    """Levels of the folder's one slide, finest first."""
    with WsiDicom.open(folder) as slide:
        return [
            np.asarray(slide.read_region((0, 0), level.level, (level.size.width, level.size.height)))
            for level in slide.levels
        ]


def positions_by_column(dataset: Dataset, tile_px: int = 128) -> None:
    """Frames column by column, each with its position, and no organisation."""
    num_x = -(-dataset.TotalPixelMatrixColumns // tile_px)
    num_y = -(-dataset.TotalPixelMatrixRows // tile_px)
    order = [(row, column) for column in range(num_x) for row in range(num_y)]
    groups = []
    for row, column in order:
        position = Dataset()
        position.ColumnPositionInTotalImagePixelMatrix = column * tile_px + 1
        position.RowPositionInTotalImagePixelMatrix = row * tile_px + 1
        group = Dataset()
        group.PlanePositionSlideSequence = DicomSequence([position])
        groups.append(group)
    del dataset.DimensionOrganizationType
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    size = 3 * tile_px**2
    frames = [dataset.PixelData[i * size : (i + 1) * size] for i in range(num_x * num_y)]
    dataset.PixelData = b"".join(frames[row * num_x + column] for row, column in order)
    dataset["PixelData"].VR = "OB"


@pytest.mark.parametrize("name", ["dicom-tiff-dual", "pyr_noext"])
def test_the_small_inputs_are_what_wsidicom_shows(name: str, tmp_path: Path) -> None:
    folder = sample("inputs", "slides", name)
    found = indexed(folder, tmp_path / "index")
    assert len(found) == 1, "one slide, however many instances"
    (regions,) = found.values()
    assert (regions.header.mpp_x, regions.header.mpp_y) == pytest.approx((0.5, 0.5))
    right = by_wsidicom(folder)
    assert len(right) == len(regions.header.levels)
    for level, pixels in enumerate(right):
        np.testing.assert_array_equal(whole(regions, level), pixels)


@pytest.mark.parametrize("name", ["no_org_type_colmajor", "mpp_per_frame", "focal3"])
def test_small_inputs_that_wsidicom_does_not_read_right_show_the_same_picture(name: str) -> None:
    folder, dual = (sample("inputs", "slides", each) for each in (name, "dicom-tiff-dual"))
    regions = opened(folder, "a.dcm")
    np.testing.assert_array_equal(whole(regions), by_wsidicom(dual)[0])
    assert (regions.header.mpp_x, regions.header.mpp_y) == pytest.approx((0.5, 0.5))


def test_of_focal_planes_the_sharp_middle_one_is_read_and_the_row_says_so(tmp_path: Path) -> None:
    folder = sample("inputs", "slides", "focal3")
    index(config_for(folder, tmp_path / "index"))
    snapshot = open_snapshot(str(tmp_path / "index"))
    assert "middle one of 3 focal planes" in snapshot.rows[0].detail


def test_positions_decide_where_no_organisation_is_said(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, change=positions_by_column)
    np.testing.assert_array_equal(whole(opened(tmp_path, "a.dcm")), FINEST)


@pytest.mark.parametrize("syntax", [JPEG, JPEG2000, JPEGLS, JPEGXL, HTJ2K, RLE])
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_every_codec_by_every_offset_table(tmp_path: Path, syntax: str, table: str) -> None:
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=syntax, table=table)
    found = whole(opened(tmp_path, "a.dcm"))
    if syntax == JPEG:
        with openslide.OpenSlide(tmp_path / "a.dcm") as oracle:
            right = np.asarray(oracle.read_region((0, 0), 0, oracle.dimensions))[..., :3]
    else:
        right = FINEST
    np.testing.assert_array_equal(found, right)


def test_lengths_that_count_the_headers_of_items(tmp_path: Path) -> None:
    """As wsidicom 0.31 writes them: of every frame but the last."""

    def count_headers(dataset: Dataset) -> None:
        lengths = np.frombuffer(dataset.ExtendedOffsetTableLengths, "<u8").copy()
        lengths[:-1] += 8
        dataset.ExtendedOffsetTableLengths = lengths.tobytes()

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=JPEG2000, table="extended", change=count_headers)
    np.testing.assert_array_equal(whole(opened(tmp_path, "a.dcm")), FINEST)


@pytest.mark.parametrize("table", ["basic", "extended"])
@pytest.mark.parametrize("wrong", ["zeros", "past 4 GiB", "one short"])
def test_offsets_that_are_wrong_are_found_anew(tmp_path: Path, table: str, wrong: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", FINEST, syntax=JPEGLS, table=table)
    data, kind = bytearray(path.read_bytes()), "<u4" if table == "basic" else "<u8"
    element = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" if table == "basic" else b"\xe0\x7f\x01\0OV\0\0"
    value_at = data.find(element) + (20 if table == "basic" else 12)
    offsets = np.frombuffer(data, kind, 48, value_at).copy()
    if wrong == "zeros":
        offsets[:] = 0
    elif wrong == "past 4 GiB":
        offsets[20:] -= offsets[20]
    else:
        offsets[-1] = offsets[-2]
    data[value_at : value_at + offsets.nbytes] = offsets.tobytes()
    path.write_bytes(data)
    np.testing.assert_array_equal(whole(opened(tmp_path, "a.dcm")), FINEST)


@pytest.mark.parametrize(("mct", "photometric"), [(True, "YBR_FULL"), (False, "YBR_RCT"), (False, "YBR_ICT")])
def test_colours_that_header_and_codestream_tell_otherwise(
    tmp_path: Path, mct: bool, photometric: str
) -> None:
    """OpenSlide refuses the first and shows false colours of the others."""

    def recode(dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = photometric
        if not mct:
            frame = imagecodecs.jpeg2k_encode(FINEST[:128, :128].copy(), codecformat="j2k", mct=False)
            dataset.PixelData = encapsulate([frame] * int(dataset.NumberOfFrames))

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=JPEG2000, change=recode)
    with pytest.raises(SlideError) as caught:
        whole(opened(tmp_path, "a.dcm"))
    assert caught.value.reason == "unsupported-pixels"


def test_an_object_that_is_a_tiff_as_well_is_dicom(tmp_path: Path) -> None:
    slide = tmp_path / "slide"
    slide.mkdir()
    for level, pixels in enumerate((FINEST, halved(FINEST))):
        path = write_dicom(slide / f"{level}.dcm", pixels, level=level, syntax=EXPLICIT)
        as_tiff_too(path)
        assert tifffile.TiffFile(path).pages[0].shape == (64, 64, 3)
    regions = opened(slide, "0.dcm", "1.dcm")
    np.testing.assert_array_equal(whole(regions), FINEST)
    np.testing.assert_array_equal(whole(regions, 1), halved(FINEST))


@pytest.mark.parametrize(
    "names",
    [
        ("0.tif", "1.tif"),
        ("a/0.svs", "b/1.dcm"),
        ("0", "1.tf8"),
        ("0.ndpi", "1.tif"),
        ("0.jpg", "1.PNG"),
        ("a/0.gz", "b/1.zip"),
        ("0.txt", "1.dcm"),
    ],
)
def test_names_do_not_tell_what_dicom_is(tmp_path: Path, names: tuple[str, str]) -> None:
    """Beside TIFF files of the same names' ends, one of them called DICOM."""
    slides, pixels = tmp_path / "slides", tissue_picture(600, 700, seed=1)
    for name in (*names, "x.tif", "y.dcm", "z.svs"):
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
    write_dicom(slides / names[0], pixels, syntax=EXPLICIT, mpp=(2.0, 2.0))
    write_dicom(slides / names[1], halved(pixels), level=1, syntax=EXPLICIT, mpp=(2.0, 2.0))
    write_tiff(slides / "x.tif", [tissue_picture(500, 600, seed=2)], mpp=2.0, compression="deflate")
    write_tiff(slides / "y.dcm", [tissue_picture(500, 600, seed=3)], mpp=2.0, compression="deflate")
    (slides / "z.svs").write_bytes(b"no slide" * 40)
    index(config_for(slides, tmp_path / "index"), 3)
    snapshot = open_snapshot(str(tmp_path / "index"))
    found = {row.slide: (row.status, len(row.header.levels)) for row in snapshot.rows}
    assert found == {names[0]: ("ok", 2), "x.tif": ("ok", 1), "y.dcm": ("ok", 1), "z.svs": ("not-a-slide", 0)}


def test_a_folder_of_wrong_names_alone_is_no_empty_one(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("a.jpg", "b.gz", "notes.txt"):
        (slides / name).write_bytes(b"no slide" * 40)
    with pytest.raises(UserError, match="cannot be one"):
        require_slides(SlidesConfig(uri=str(slides)))
    write_dicom(slides / "c.zip", tissue_picture(600, 700), syntax=EXPLICIT, mpp=(2.0, 2.0))
    (slides / "c.zip.part").write_bytes((slides / "c.zip").read_bytes())
    require_slides(SlidesConfig(uri=str(slides)))
    assert figures_of(SlidesConfig(uri=str(slides)))[0].num_objects == 1
    index(config_for(slides, tmp_path / "index"))
    assert statuses(tmp_path / "index") == {"c.zip": "ok"}


def test_dicom_under_another_name_that_nobody_looked_at_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eosin.index.listing._MOST_LOOKED_AT", 1)
    slides = make_slides(tmp_path / "slides", 3)
    write_dicom(slides / "t.svs", tissue_picture(600, 700), syntax=EXPLICIT, mpp=(2.0, 2.0))
    index(config_for(slides, tmp_path / "index"))
    row = rows_of(tmp_path / "index")["t.svs"]
    assert row.status == "unsupported-layout" and "name it .dcm" in row.detail


def test_instances_of_any_name_in_any_folder_are_one_slide(tmp_path: Path) -> None:
    pixels, slides = tissue_picture(900, 1000, seed=1), tmp_path / "slides"
    for level, name in enumerate(("a/IM000001", "b/1.2.840.99.7", "c.dicom")):
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        write_dicom(slides / name, pixels, level=level, syntax=EXPLICIT, mpp=(2.0, 2.0))
        pixels = halved(pixels)
    for name in ("README", "notes.docx", "a.png", "empty"):
        (slides / name).write_bytes(b"no slide" if name != "empty" else b"")
    found = indexed(slides, tmp_path / "index")
    assert list(found) == ["a/IM000001"] and len(found["a/IM000001"].header.levels) == 3
    manifest = open_snapshot(str(tmp_path / "index")).manifest
    assert (manifest.num_slides, manifest.num_not_slides) == (1, 4)


def test_pyramids_of_one_series_are_slides_of_their_own(tmp_path: Path) -> None:
    for name, pyramid in (("a.dcm", "1.2.3"), ("b.dcm", "1.2.4")):
        write_dicom(tmp_path / name, tissue_picture(600, 700), syntax=EXPLICIT, mpp=(2.0, 2.0),
                    change=partial(_put, name="PyramidUID", value=pyramid))  # fmt: skip
    index(config_for(tmp_path, tmp_path.with_name("index-of-pyramids")))
    assert statuses(tmp_path.with_name("index-of-pyramids")) == {"a.dcm": "ok", "b.dcm": "ok"}


@pytest.mark.parametrize("kind", ["LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER", "SOMETHING"])
def test_only_what_is_of_the_volume_is_a_level(tmp_path: Path, kind: str) -> None:
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT)
    write_dicom(tmp_path / "b.dcm", halved(FINEST), level=1, kind=kind, syntax=EXPLICIT)
    assert len(opened(tmp_path, "a.dcm", "b.dcm").header.levels) == 1
    error = reason(tmp_path, "b.dcm")
    assert error.reason == "not-a-slide" and (kind.lower() in error.message or "unknown" in error.message)


def _put(dataset: Dataset, name: str, value: object) -> None:
    setattr(dataset, name, value)


def test_planes_as_objects_of_their_own(tmp_path: Path) -> None:
    for number, z_mm in enumerate((0.001, 0.003, 0.002)):
        origin = Dataset()
        origin.ZOffsetInSlideCoordinateSystem = z_mm
        change = partial(_put, name="TotalPixelMatrixOriginSequence", value=DicomSequence([origin]))
        pixels = np.full((200, 200, 3), 50 * number, np.uint8)
        write_dicom(tmp_path / f"{number}.dcm", pixels, syntax=EXPLICIT, change=change)
    assert int(whole(opened(tmp_path, "0.dcm", "1.dcm", "2.dcm"))[0, 0, 0]) == 100


def test_a_concatenation_is_one_level_and_a_lost_part_is_named(tmp_path: Path) -> None:
    write_dicom(tmp_path / "whole.dcm", FINEST, syntax=EXPLICIT)
    num_frames, size = int(read_dicom(tmp_path / "whole.dcm").NumberOfFrames), 3 * 128**2
    for number, (start, end) in enumerate(((0, 20), (20, num_frames))):
        dataset = read_dicom(tmp_path / "whole.dcm")
        dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = "1.2.99", start
        dataset.NumberOfFrames = end - start
        dataset.PixelData = dataset.PixelData[start * size : end * size]
        dataset.save_as(tmp_path / f"part{number}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(whole(opened(tmp_path, "part1.dcm", "part0.dcm")), FINEST)
    lost = reason(tmp_path, "part1.dcm")
    assert lost.reason == "truncated" and "20 of 48 tiles" in lost.message


@pytest.mark.parametrize("cut", [(48, 96), (30, 110), (10, 20)])
@pytest.mark.parametrize("what", ["planes", "paths"])
def test_parts_of_a_concatenation_that_hold_several_pictures(
    tmp_path: Path, what: str, cut: tuple[int, int]
) -> None:
    """Three pictures of each tile, wherever the parts begin: the middle plane, or the first path listed."""
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, sparse=True, planes=3)
    one = np.frombuffer(read_dicom(tmp_path / "a.dcm").PixelData, np.uint8).reshape(3, 48, -1)[0]
    frames = np.concatenate([one // 2, one, one // 3])
    for number, (start, end) in enumerate(pairwise((0, *cut, 144))):
        dataset = read_dicom(tmp_path / "a.dcm")
        dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = "1.2.99", start
        dataset.InConcatenationTotalNumber, dataset.NumberOfFrames = 3, end - start
        dataset.PixelData, groups = frames[start:end].tobytes(), []
        for i in range(start, end):
            groups.append(deepcopy(dataset.PerFrameFunctionalGroupsSequence[i % 48]))
            if what == "planes":
                groups[-1].PlanePositionSlideSequence[0].ZOffsetInSlideCoordinateSystem = i // 48 / 1e3
            else:
                groups[-1].OpticalPathIdentificationSequence = DicomSequence([_path("bac"[i // 48])])
        dataset.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
        dataset.OpticalPathSequence = DicomSequence([_path(name) for name in "abc"])
        dataset.save_as(tmp_path / f"part{number}.dcm", enforce_file_format=True)
    regions = opened(tmp_path, "part1.dcm", "part2.dcm", "part0.dcm")
    np.testing.assert_array_equal(whole(regions), FINEST)


def _path(name: str) -> Dataset:
    path = Dataset()
    path.OpticalPathIdentifier = name
    return path


MPPS: dict[str, tuple[Callable[[Dataset], None], float | None]] = {
    "per frame": (lambda dataset: _measures_per_frame(dataset, 0.25), 0.25),
    "imaged volume": (lambda dataset: _imaged_volume(dataset, 903 * 0.25e-3), 0.25),
    "width alone": (lambda dataset: _imaged_volume(dataset, 903 * 0.25e-3, height_mm=None), 0.25),
    "extents swapped": (
        lambda dataset: _imaged_volume(dataset, 701 * 0.25e-3, height_mm=903 * 0.25e-3),
        None,
    ),
    "absurd": (lambda dataset: _imaged_volume(dataset, 903 * 353e-3), None),
    "nothing": (lambda dataset: dataset.__delattr__("SharedFunctionalGroupsSequence"), None),
}


def _measures_per_frame(dataset: Dataset, mpp: float) -> None:
    del dataset.SharedFunctionalGroupsSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        measures = Dataset()
        measures.PixelSpacing = [mpp / 1e3, mpp / 1e3]
        group.PixelMeasuresSequence = DicomSequence([measures])


def _imaged_volume(dataset: Dataset, width_mm: float, height_mm: float | None = 0.0) -> None:
    del dataset.SharedFunctionalGroupsSequence
    dataset.ImagedVolumeWidth = width_mm
    if height_mm is not None:
        dataset.ImagedVolumeHeight = height_mm or width_mm * 701 / 903


@pytest.mark.parametrize("name", MPPS)
def test_where_resolution_may_stand(tmp_path: Path, name: str) -> None:
    change, right = MPPS[name]
    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, sparse=True, change=change)
    header = opened(tmp_path, "a.dcm").header
    wanted = pytest.approx((right, right)) if right else (None, None)
    assert (header.mpp_x, header.mpp_y) == wanted


def test_fluorescence_is_refused(tmp_path: Path) -> None:
    def shine(dataset: Dataset) -> None:
        kind, path = Dataset(), Dataset()
        kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = "111743", "DCM", "Epifluorescence"
        path.IlluminationTypeCodeSequence = DicomSequence([kind])
        dataset.OpticalPathSequence = DicomSequence([path])

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT, change=shine)
    assert reason(tmp_path, "a.dcm").reason == "not-brightfield"


def test_an_instance_that_vanished_or_was_revised_is_a_reason(tmp_path: Path) -> None:
    from eosin.storage import open_store

    write_dicom(tmp_path / "a.dcm", FINEST, syntax=EXPLICIT)
    write_dicom(tmp_path / "b.dcm", halved(FINEST), level=1, syntax=EXPLICIT)
    store = open_store(str(tmp_path))
    listed = [store.head(name) for name in ("a.dcm", "b.dcm")]
    shutil.move(tmp_path / "b.dcm", tmp_path / "c.dcm")
    with pytest.raises(SlideError) as caught:
        read_header(store, listed)
    assert caught.value.reason == "missing"
