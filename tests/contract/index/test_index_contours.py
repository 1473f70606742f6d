"""Tissue contours as GeoJSON: drawn again by another library, they are the mask."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image, ImageDraw

from eosin.errors import UserError
from eosin.index.contours import contours_of, drawn_mask, write_contours
from eosin.index.inspect import inspect_index
from eosin.index.overrides import Override
from eosin.index.plan import open_scan, plan_scan
from eosin.index.publish import publish_snapshot
from eosin.index.rows import SlideRow
from eosin.index.scan import scan_shard
from eosin.index.tissue_mask import TissueMask
from eosin.slides.errors import SlideError
from eosin.slides.model import Level, SlideHeader
from eosin.storage import open_store
from tests.support.indexing import LOG, config_for, index, make_slides, rows_of
from tests.support.openslide_files import write_scn
from tests.support.slide_files import tissue_picture


def drawn(collection: dict[str, Any], mask: TissueMask) -> np.ndarray:
    """The polygons filled by Pillow, at the mask's size."""
    picture = Image.new("1", (mask.width * 4, mask.height * 4))
    draw = ImageDraw.Draw(picture)
    for feature in collection["features"]:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1] and len(ring) >= 4
            points = [(4 * x / mask.pixel_x_px - 0.5, 4 * y / mask.pixel_y_px - 0.5) for x, y in ring]
            draw.polygon(points, fill=number == 0)
    return np.asarray(picture)[2::4, 2::4]


def test_the_polygons_are_the_mask(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 2)
    index(config_for(slides, tmp_path / "index"))
    result = write_contours(str(tmp_path / "index"), str(tmp_path / "out"))
    assert result.num_slides == 2 and result.num_contours >= 2
    for name, row in rows_of(str(tmp_path / "index")).items():
        collection = json.loads((tmp_path / "out" / f"{name}.geojson").read_text())
        assert {feature["properties"]["objectType"] for feature in collection["features"]} == {"annotation"}
        assert row.tissue is not None
        assert (drawn(collection, row.tissue) == row.tissue.array).mean() > 0.99


def test_holes_are_holes() -> None:
    array = np.zeros((40, 60), bool)
    array[5:35, 5:50] = True
    array[12:20, 20:30] = False
    array[38, 55] = True
    mask = TissueMask.from_array(array, 16.0, 8.0)
    row = SlideRow("a.svs", "ok", "", SlideHeader((), "", "", (), 0.5, 0.5), tissue=mask)
    collection = contours_of(row)
    assert [len(each["geometry"]["coordinates"]) for each in collection["features"]].count(2) == 1
    found = drawn(collection, mask)
    assert (found == array).mean() > 0.99 and not found[13:19, 21:29].any() and found[38, 55]


def test_qupath_counts_from_the_corner_of_what_was_scanned(tmp_path: Path) -> None:
    """It shows the bounds that OpenSlide names and no more; TRIDENT counts from the corner of the slide."""
    slides, at = tmp_path / "slides", (200, 120)
    slides.mkdir()
    write_scn(slides / "a.scn", tissue_picture(600, 800, seed=4), at_px=at)
    index(config_for(slides, tmp_path / "index"))
    with openslide.OpenSlide(slides / "a.scn") as slide:
        assert tuple(int(slide.properties[f"openslide.bounds-{axis}"]) for axis in "xy") == at
    (row,) = rows_of(str(tmp_path / "index")).values()
    assert row.tissue is not None and (row.header.origin_x_px, row.header.origin_y_px) == at
    write_contours(str(tmp_path / "index"), str(tmp_path / "out"))
    collection = json.loads((tmp_path / "out" / "a.scn.geojson").read_text())
    shifted = deepcopy(collection)
    for each in shifted["features"]:
        rings = each["geometry"]["coordinates"]
        each["geometry"]["coordinates"] = [[[x + at[0], y + at[1]] for x, y in ring] for ring in rings]
        del each["properties"]["objectType"]
    assert (drawn(shifted, row.tissue) == row.tissue.array).mean() > 0.99
    for name, tree in (("qupath", collection), ("trident", shifted)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.geojson").write_text(json.dumps(tree))
        out = tmp_path / f"{name}-index"
        index(config_for(slides, out, f"slides.contours={tmp_path / name}"))
        (found,) = rows_of(str(out)).values()
        assert found.tissue is not None and found.status == "ok"
        np.testing.assert_array_equal(found.tissue.array, row.tissue.array)


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    index(config_for(make_slides(tmp_path / "slides", 1), tmp_path / "index"))
    with pytest.raises(UserError, match="no slide"):
        write_contours(str(tmp_path / "index"), str(tmp_path / "out"), ["nothing*"])


SIDE, PIXEL = 60, 8.0
HEADER = SlideHeader((), "", "", (Level(480, 480, 1.0, 240, 240, "jpeg", "ycbcr", 0),), 0.5, 0.5)
SQUARE = [[80, 80], [240, 80], [240, 240], [80, 240], [80, 80]]
BOW_TIE = [[80, 80], [240, 240], [240, 80], [80, 240], [80, 80]]
HOLE = [[120, 120], [120, 160], [160, 160], [160, 120], [120, 120]]


def feature(kind: str, coordinates: object, **properties: object) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def mask_of(folder: Path, tree: object, slide: str = "a.svs") -> np.ndarray:
    path = folder / "a.svs.geojson"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    (info,) = (each for each in open_store(str(folder)).list() if each.key == path.name)
    like = TissueMask.from_array(np.zeros((SIDE, SIDE), bool), PIXEL, PIXEL)
    return drawn_mask(Override(contours=str(path), contours_etag=info.etag), slide, HEADER, like).array


def test_holes_several_parts_and_the_forms_that_qupath_writes(tmp_path: Path) -> None:
    other = [[304, 304], [400, 304], [400, 464], [304, 464], [304, 304]]
    right = np.zeros((SIDE, SIDE), bool)
    right[10:30, 10:30] = True
    right[15:20, 15:20] = False
    first = feature("Polygon", [SQUARE, HOLE], classification={"name": "Tissue"})
    np.testing.assert_array_equal(mask_of(tmp_path, first), right)
    right[38:58, 38:50] = True
    for tree in (
        {"type": "FeatureCollection", "features": [first, feature("Polygon", [other])]},
        [
            first,
            feature("Polygon", [other[::-1]], classification={"names": ["Tissue"]}, objectType="annotation"),
        ],
        [feature("MultiPolygon", [[SQUARE, HOLE], [other]])],
        {  # as TRIDENT has it written by geopandas
            "type": "FeatureCollection", "name": "slide",
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
            "features": [feature("Polygon", [SQUARE, HOLE], tissue_id=0),
                         feature("Polygon", [other], tissue_id=1)],
        },
    ):  # fmt: skip
        found = mask_of(tmp_path, tree)
        assert (found != right).sum() == 0
    assert not mask_of(tmp_path, []).any(), "somebody deleted them all"


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ("{", "Expecting property name"),
        ({"type": "Topology"}, "feature 0 is no GeoJSON Feature"),
        ([feature("LineString", SQUARE)], "feature 0 is a LineString, not a polygon"),
        ([feature("Polygon", [])], "polygon without rings"),
        ([feature("Polygon", [SQUARE[:3]])], "four or more points"),
        ([feature("Polygon", [[*SQUARE[:4], [0, "x"]]])], "four or more points"),
        ([feature("Polygon", [[*SQUARE[:4], [80, float("nan")]]])], "four or more points"),
        ([feature("Polygon", [[*SQUARE[:4], [90, 80]]])], "not closed"),
        ([feature("Polygon", [BOW_TIE])], "feature 0: ring 0 crosses itself"),
        ([feature("Polygon", [[*SQUARE, *SQUARE[1:]]])], "ring 0 crosses itself"),
        ([feature("Polygon", [HOLE, SQUARE])], "lies outside its polygon"),
        ([feature("Polygon", [SQUARE, HOLE, HOLE])], "over one another"),
        ([feature("Polygon", [[[x, y + 300] for x, y in SQUARE]])], "outside the slide of 480 × 480 px"),
        ([feature("Polygon", [SQUARE], classification={"name": "Tumor"})], "classified Tumor"),
        ([feature("Polygon", [SQUARE], metadata={"slide": "b.svs"})], "drawn for the slide b.svs"),
        ("[" * 100_000, "recursion"),
    ],
)  # fmt: skip
def test_what_outlines_no_tissue_of_the_slide_is_refused(tmp_path: Path, tree: object, reason: str) -> None:
    with pytest.raises(SlideError, match=reason) as refused:
        mask_of(tmp_path, tree)
    assert refused.value.reason == "bad-contours" and "a.svs.geojson" in refused.value.message


def test_a_mask_written_and_read_back_is_the_same_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for density in (0.2, 0.5, 0.8):
        array = rng.random((SIDE, SIDE)) < density
        row = SlideRow("a.svs", "ok", "", HEADER, tissue=TissueMask.from_array(array, PIXEL, PIXEL))
        np.testing.assert_array_equal(mask_of(tmp_path, contours_of(row)), array)


def test_an_index_takes_mended_contours_in_place_of_what_it_finds(tmp_path: Path) -> None:
    slides, uri, folder = make_slides(tmp_path / "slides", 4), str(tmp_path / "index"), tmp_path / "contours"
    index(config_for(slides, uri))
    write_contours(uri, str(folder))
    before = rows_of(uri)
    (folder / "slide-0.svs.geojson").write_text(json.dumps(feature("Polygon", [SQUARE])))
    (folder / "slide-1.svs.geojson").write_text("[1]")
    (folder / "slide-2.svs.geojson").rename(folder / "slide-2.geojson")
    (folder / "slide-3.svs.geojson").unlink()
    (folder / "other.geojson").write_text("[]")
    config = config_for(slides, uri, f"slides.contours={folder}")
    scan_id = open_scan(config).scan_id
    scan_shard(config, 0, 1, LOG, plan=plan_scan(config, scan_id))
    publish_snapshot(config, 1, LOG, plan=plan_scan(config, scan_id))
    rows = rows_of(uri)
    area_px = rows["slide-0.svs"].tissue.area
    assert area_px == pytest.approx(160 * 160, rel=0.1) and area_px != before["slide-0.svs"].tissue.area
    assert rows["slide-0.svs"].contours.endswith("slide-0.svs.geojson")
    assert (rows["slide-1.svs"].status, rows["slide-1.svs"].tissue) == ("bad-contours", None)
    np.testing.assert_array_equal(rows["slide-2.svs"].tissue.array, before["slide-2.svs"].tissue.array)
    assert rows["slide-2.svs"].contours and not rows["slide-3.svs"].contours
    text, of_one = str(inspect_index(uri)), str(inspect_index(uri, "slide-0.svs"))
    assert (
        "contours   of 2 slides" in text
        and "mend its GeoJSON file" in text
        and f"({slides.as_uri()})" in text
    )
    assert "mask       contours, " in of_one and "mask       detected" in str(
        inspect_index(uri, "slide-3.svs")
    )
    (folder / "slide-0.svs.geojson").write_text("[]")  # after the scan was opened
    assert open_scan(config).scan_id != scan_id
    index(config)
    assert rows_of(uri)["slide-0.svs"].status == "no-tissue"
    index(config_for(slides, uri))
    assert {row.contours for row in rows_of(uri).values()} == {""}
    with pytest.raises(UserError, match="none of the 0 GeoJSON files at"):
        index(
            config_for(
                slides, uri, f"slides.contours={tmp_path / 'nothing'}", "index.allow_fewer_slides=true"
            )
        )
