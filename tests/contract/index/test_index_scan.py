"""From a folder of slides to a snapshot: the same whatever the sharding, and nothing read twice."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest

import eosin.index.scan as scan_module
from eosin.errors import UserError
from eosin.index.inspect import inspect_index
from eosin.index.publish import publish_snapshot
from eosin.index.scan import scan_shard
from eosin.index.snapshot import open_snapshot
from eosin.slides.table import level_table
from eosin.storage import open_store
from tests.support.counting import CountingStore
from tests.support.indexing import (
    LOG,
    config_for,
    count_stores,
    index,
    make_slides,
    snapshot_bytes,
    statuses,
    upload,
)
from tests.support.openslide_containers import write_sakura
from tests.support.regions import all_tiles, regions_of, tiles_of_level
from tests.support.samples import sample
from tests.support.slide_files import (
    EXPLICIT,
    halved,
    tissue_picture,
    write_aperio,
    write_dicom,
    write_sparse_bigtiff,
    write_tiff,
)

PIXELS = tissue_picture(700, 900)
LEVELS = [PIXELS, halved(PIXELS), halved(PIXELS, 2)]


@pytest.fixture
def counted() -> Iterator[list[CountingStore]]:
    """Every store a scan opens, counted."""
    yield from count_stores()


def test_any_sharding_and_order_gives_the_same_bytes(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 7)
    made = []
    for name, num_shards, order in (("one", 1, [0]), ("three", 3, [2, 0, 1]), ("nine", 9, range(8, -1, -1))):
        manifest = index(config_for(slides, tmp_path / name), num_shards, list(order))
        made.append(snapshot_bytes(tmp_path / name))
        assert manifest.num_slides == manifest.num_ok == 7
    assert made[0] == made[1] == made[2]


def test_a_rerun_lists_once_and_reads_no_slide(tmp_path: Path, counted: list[CountingStore]) -> None:
    config = config_for(make_slides(tmp_path / "slides"), tmp_path / "index")
    first = index(config)
    counted.clear()
    assert scan_shard(config, 0, 1, LOG).num_ok == 4
    slides, written = counted
    assert slides.num_listings == 1
    assert not slides.ranges and not slides.gets and not written.puts
    assert publish_snapshot(config, 1, LOG) == first


def test_another_number_of_shards_reuses_every_row(tmp_path: Path, counted: list[CountingStore]) -> None:
    config = config_for(make_slides(tmp_path / "slides"), tmp_path / "index")
    index(config)
    counted.clear()
    assert sum(scan_shard(config, shard, 3, LOG).num_ok for shard in range(3)) == 4
    assert not any(store.ranges for store in counted if store.uri.endswith("slides"))


def test_only_what_changed_is_read_again_and_what_is_gone_leaves(
    tmp_path: Path, counted: list[CountingStore]
) -> None:
    slides = make_slides(tmp_path / "slides")
    config = config_for(slides, tmp_path / "index")
    first = index(config)
    (slides / "slide-0.svs").unlink()
    write_aperio(slides / "slide-1.svs", LEVELS, compression="jpeg")
    write_tiff(slides / "new.tif", LEVELS, compression="deflate")
    counted.clear()
    scan_shard(config, 0, 1, LOG)
    read = {each.key for store in counted for each in store.ranges}
    assert {key for key in read if key.endswith((".svs", ".tif"))} == {"slide-1.svs", "new.tif"}
    second = publish_snapshot(config, 1, LOG)  # whose guard looks at one slide of a kind again
    assert set(statuses(tmp_path / "index")) == {"slide-1.svs", "slide-2.svs", "slide-3.svs", "new.tif"}
    assert second.snapshot_id != first.snapshot_id
    old = open_snapshot(str(tmp_path / "index"), first.snapshot_id)
    assert len(old.rows) == 4, "an older snapshot stays as it was"


def test_killed_at_any_slide_it_goes_on_and_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[CountingStore]
) -> None:
    monkeypatch.setattr(scan_module, "_UNITS_A_PART", 2)
    slides = make_slides(tmp_path / "slides", 6)
    whole = index(config_for(slides, tmp_path / "whole"))
    config = config_for(slides, tmp_path / "killed", "index.slides_in_flight=1")
    real = scan_module.read_slide
    left = [3]

    def dies(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(scan_module, "read_slide", dies)
        with pytest.raises(KeyboardInterrupt):
            scan_shard(config, 0, 1, LOG)
    counted.clear()
    scan_shard(config, 0, 1, LOG)
    again = {each.key for store in counted for each in store.ranges if each.key.endswith(".svs")}
    assert publish_snapshot(config, 1, LOG).snapshot_id == whole.snapshot_id
    assert again == {f"slide-{i}.svs" for i in range(2, 6)}, "the first part was published before the kill"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    config = config_for(make_slides(tmp_path / "slides"), tmp_path / "index")
    scan_shard(config, 0, 3, LOG)
    with pytest.raises(UserError, match=r"2 of 3 shards .* 1/3, 2/3"):
        publish_snapshot(config, 3, LOG)


def test_requests_and_bytes_a_slide_are_few(tmp_path: Path, counted: list[CountingStore]) -> None:
    pixels = tissue_picture(3000, 4000)
    slides = tmp_path / "slides"
    slides.mkdir()
    levels = [pixels, halved(pixels, 2), halved(pixels, 4)]
    write_aperio(slides / "a.svs", levels, mpp=0.5, compression="jpeg")
    size_bytes = (slides / "a.svs").stat().st_size
    index(config_for(slides, tmp_path / "index"))
    store = next(each for each in counted if each.uri.endswith("slides"))
    assert not store.downloads and not store.gets
    row = open_snapshot(str(tmp_path / "index")).rows[0]
    tissue = level_table(row.header.levels[2], all_tiles(open_snapshot(str(tmp_path / "index")), row))
    num_ranges, num_bytes = store.reads_of("a.svs")
    header_ranges = num_ranges - np.count_nonzero(tissue["size_bytes"])
    assert header_ranges <= 12
    assert num_bytes - int(tissue["size_bytes"].sum()) <= min(2**20, size_bytes // 2)


@pytest.mark.usefixtures("levels_of_several_pictures")
def test_ten_gigapixels_are_indexed_by_a_dozen_requests_beside_tables_and_tissue(
    tmp_path: Path, counted: list[CountingStore]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    path = write_sparse_bigtiff(slides / "vast.svs")
    with openslide.OpenSlide(path) as oracle:
        assert oracle.level_dimensions[0] == (100_000, 100_000)
        expected = np.asarray(oracle.read_region((70_003, 98_765), 0, (500, 400)))[..., :3]
    index(config_for(slides, tmp_path / "index"))
    snapshot = open_snapshot(str(tmp_path / "index"))
    row = snapshot.rows[0]
    assert (
        row.status == "ok"
        and row.tissue is not None
        and (row.tissue.width, row.tissue.height) == (3125, 3125)
    )
    store = next(each for each in counted if each.uri.endswith("slides"))
    tissue = tiles_of_level(snapshot, row, 2)
    num_ranges, num_bytes = store.reads_of("vast.svs")
    num_tiles = sum(level.num_tiles for level in row.header.levels)
    assert num_ranges - len(tissue) <= 12
    assert num_bytes - int(tissue["size_bytes"].sum()) - 12 * num_tiles <= 2**20
    region = regions_of(snapshot, row).read_region((70_003, 98_765), 0, (500, 400))
    np.testing.assert_array_equal(region, expected)


def test_bad_slides_are_rows_with_reasons(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 1)
    whole = (slides / "slide-0.svs").read_bytes()
    (slides / "zero.svs").write_bytes(b"")
    (slides / "picture.svs").write_bytes(cv2.imencode(".png", PIXELS)[1].tobytes())
    (slides / "cut.svs").write_bytes(whole[: len(whole) // 2])
    write_tiff(slides / "no-mpp.tif", LEVELS, mpp=1e4 / 72, compression="jpeg")
    write_aperio(slides / "coarse.svs", LEVELS, mpp=30, compression="jpeg")
    write_aperio(slides / "glass.svs", [np.full((600, 600, 3), 243, np.uint8)], compression="jpeg")
    (slides / "notes.csv").write_text("not,a,slide\n")
    (slides / ".hidden.svs").write_bytes(b"")
    (slides / "a name ü.svs").write_bytes(whole)
    manifest = index(config_for(slides, tmp_path / "index"), 2)
    assert statuses(tmp_path / "index") == {
        "slide-0.svs": "ok", "a name ü.svs": "ok", "zero.svs": "empty-file", "picture.svs": "not-a-slide",
        "cut.svs": "truncated", "no-mpp.tif": "no-mpp", "coarse.svs": "too-coarse", "glass.svs": "no-tissue",
    }  # fmt: skip
    assert manifest.num_ok == 2 and sum(manifest.reasons.values()) == 6
    assert "picture.svs: not-a-slide: it is a PNG" in str(inspect_index(str(tmp_path / "index")))


def test_tile_offsets_past_the_end_are_named(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 1)
    store = open_store(str(slides))
    from tests.support.regions import read_header

    _, tiles = read_header(store, [store.head("slide-0.svs")])
    data = (slides / "slide-0.svs").read_bytes()
    last = int(tiles["offset"][5])
    broken = data.replace(last.to_bytes(4, "little"), (len(data) + 99).to_bytes(4, "little"))
    assert broken != data
    (slides / "broken.svs").write_bytes(broken)
    index(config_for(slides, tmp_path / "index"))
    row = next(row for row in open_snapshot(str(tmp_path / "index")).rows if row.slide == "broken.svs")
    assert row.status == "tile-out-of-range" and "tile 5" in row.detail


def test_a_tile_that_is_not_a_jpeg_is_named(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 1)
    store = open_store(str(slides))
    from tests.support.regions import read_header

    _, tiles = read_header(store, [store.head("slide-0.svs")])
    data = bytearray((slides / "slide-0.svs").read_bytes())
    for offset, size_bytes, _ in tiles.tolist():
        data[offset : offset + size_bytes] = b"\0" * size_bytes
    (slides / "zeroed.svs").write_bytes(bytes(data))
    index(config_for(slides, tmp_path / "index"))
    assert statuses(tmp_path / "index")["zeroed.svs"] == "corrupt-tile"


def test_an_empty_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    config = config_for(tmp_path / "slides", tmp_path / "index")
    with pytest.raises(UserError, match="there is no slide in"):
        index(config, 2)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("slides", "include", "message", "hint"),
    [
        ("slidess", [], "there is no such folder", "did you mean .*slides"),
        ("slides/a.svs", [], "it is a file", "name its folder"),
        ("notes", [], "readme.txt and what else is there cannot be one", "check"),
        ("slides", ["*.ndpi"], r"that slides.include \(\*\.ndpi\) names", "the first key is a.svs"),
    ],
)
def test_where_no_slide_is_it_says_why_and_leaves_nothing_behind(
    tmp_path: Path, slides: str, include: list[str], message: str, hint: str
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").write_bytes(b"")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_bytes(b"")
    config = config_for(tmp_path / slides, tmp_path / "index", f"slides.include={json.dumps(include)}")
    with pytest.raises(UserError, match=message) as caught:
        index(config)
    assert re.search(hint, caught.value.hint)
    assert not (tmp_path / "index").exists()


def test_far_fewer_slides_are_not_made_the_newest_unasked(tmp_path: Path) -> None:
    slides, uri = make_slides(tmp_path / "slides", 5), str(tmp_path / "index")
    index(config_for(slides, tmp_path / "index"))
    newest = open_snapshot(uri).manifest
    other = make_slides(tmp_path / "other", 2)
    with pytest.raises(UserError, match=r"has 2 usable slides, and the newest .* has 5 of") as caught:
        index(config_for(other, tmp_path / "index"))
    assert open_snapshot(uri).manifest == newest
    refused = re.search(r"--snapshot (\w+)", caught.value.hint)
    assert refused and inspect_index(uri, None, refused[1]).num_slides == 2  # type: ignore[union-attr]
    made = index(config_for(other, tmp_path / "index", "index.allow_fewer_slides=true"))
    assert open_snapshot(uri).manifest == made


def test_a_snapshot_without_a_usable_slide_does_not_take_anothers_place(tmp_path: Path) -> None:
    index(config_for(make_slides(tmp_path / "slides", 1), tmp_path / "index"))
    newest = open_snapshot(str(tmp_path / "index")).manifest
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.svs").write_bytes(b"")
    with pytest.raises(UserError, match=r"no slide in .* can be used \(1 "):
        index(config_for(broken, tmp_path / "index"))
    assert open_snapshot(str(tmp_path / "index")).manifest == newest


def test_a_few_slides_less_are_a_new_snapshot(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 4)
    index(config_for(slides, tmp_path / "index"))
    (slides / "slide-0.svs").unlink()
    assert index(config_for(slides, tmp_path / "index")).num_ok == 3


def test_only_broken_slides_are_counted_and_named_with_the_cure(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for i in range(7):
        (slides / f"z{i}.svs").write_bytes(b"")
    write_tiff(slides / "a.tif", LEVELS, mpp=1e4 / 72)
    config = config_for(slides, tmp_path / "index")
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            index(config)
        assert "(7 empty-file, 1 no-mpp)" in caught.value.message
        assert "a.tif: no-mpp" in caught.value.message and "… and 3 more" in caught.value.message
        assert "slide,mpp" in caught.value.hint
    assert open_snapshot(str(tmp_path / "index")).manifest.num_slides == 8


def test_overrides_cure_exclude_and_carry_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    write_tiff(slides / "bare.tif", LEVELS, mpp=1e4 / 72, compression="jpeg")
    table = tmp_path / "overrides.csv"
    config = config_for(slides, tmp_path / "index", f"slides.overrides={table}")
    table.write_text(
        "slide,mpp,patient,cohort,label,label:grade,exclude,site\n"
        "bare.tif,0.5,P1,A,tumour,G2,,Bern\nslide-0.svs,,P2,A,,,yes,\nslide-1.svs,0.25,,,,,,\ngone.svs,1,,,,,,\n"
    )
    index(config)
    rows = {row.slide: row for row in open_snapshot(str(tmp_path / "index")).rows}
    assert rows["bare.tif"].status == "ok" and rows["bare.tif"].mpp_source == "override"
    assert (rows["bare.tif"].patient, rows["bare.tif"].cohort) == ("P1", "A")
    assert rows["bare.tif"].labels == {"label": "tumour", "grade": "G2"}
    assert rows["bare.tif"].extra == {"site": "Bern"}
    assert rows["slide-0.svs"].status == "excluded"
    assert rows["slide-1.svs"].header.mpp_x == 0.25
    assert rows["slide-2.svs"].header.mpp_x == 0.5 and rows["slide-2.svs"].mpp_source == "header"
    assert "gone.svs" in capfd.readouterr().err


def test_overrides_that_name_no_slide_at_all_are_those_of_others(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 2)
    table = tmp_path / "overrides.csv"
    table.write_text("slide,mpp\nelsewhere-1.svs,0.5\nelsewhere-2.svs,0.5\n")
    with pytest.raises(
        UserError, match=r"names no slide of .*: elsewhere-1\.svs, elsewhere-2\.svs"
    ) as caught:
        index(config_for(slides, tmp_path / "index", f"slides.overrides={table}"))
    assert "slide-0.svs, slide-1.svs" in caught.value.hint
    assert not (tmp_path / "index").exists()


def test_a_changed_override_rereads_only_where_mpp_changed(
    tmp_path: Path, counted: list[CountingStore]
) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    table = tmp_path / "overrides.csv"
    config = config_for(slides, tmp_path / "index", f"slides.overrides={table}")
    table.write_text("slide,mpp,patient\nslide-0.svs,,P1\nslide-1.svs,,P2\n")
    index(config)
    table.write_text("slide,mpp,patient\nslide-0.svs,0.3,P1\nslide-1.svs,,P9\n")
    counted.clear()
    index(config)
    read = {each.key for store in counted for each in store.ranges if each.key.endswith(".svs")}
    assert read == {"slide-0.svs"}
    rows = {row.slide: row for row in open_snapshot(str(tmp_path / "index")).rows}
    assert rows["slide-1.svs"].patient == "P9" and rows["slide-0.svs"].header.mpp_x == 0.3


def test_include_keeps_what_matches(tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "slides", 3)
    make_slides(slides / "deep", 2)
    config = config_for(slides, tmp_path / "index", 'slides.include=["deep/*-1.svs", "slide-2.svs"]')
    index(config)
    assert set(statuses(tmp_path / "index")) == {"deep/slide-1.svs", "slide-2.svs"}


def test_dicom_series_become_slides_and_are_reused(tmp_path: Path, counted: list[CountingStore]) -> None:
    slides = tmp_path / "slides"
    (slides / "case").mkdir(parents=True)
    big, small = tissue_picture(900, 1000), halved(tissue_picture(900, 1000))
    write_dicom(slides / "case" / "2.dcm", big, series="1.2.3", syntax=EXPLICIT)
    write_dicom(slides / "case" / "1.dcm", small, series="1.2.3", level=1)
    write_dicom(slides / "case" / "0.dcm", small, series="1.2.3", level=2, kind="LABEL")
    write_dicom(slides / "case" / "other.dcm", big, series="1.2.4")
    (slides / "case" / "bad.dcm").write_bytes(b"\0" * 500)
    config = config_for(slides, tmp_path / "index")
    index(config, 2)
    snapshot = open_snapshot(str(tmp_path / "index"))
    rows = {row.slide: row for row in snapshot.rows}
    assert {name: row.status for name, row in rows.items()} == {
        "case/0.dcm": "ok", "case/other.dcm": "ok", "case/bad.dcm": "not-a-slide",
    }  # fmt: skip
    row = rows["case/0.dcm"]
    assert len(row.header.objects) == 3 and len(row.header.levels) == 2
    np.testing.assert_array_equal(regions_of(snapshot, row).read_region((0, 0), 0, (1000, 900)), big)
    counted.clear()
    scan_shard(config, 0, 1, LOG)
    assert not any(store.ranges for store in counted if store.uri.endswith("slides"))


def test_slides_only_openslide_reads_are_indexed_through_a_staged_copy(
    tmp_path: Path, counted: list[CountingStore]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_sakura(slides / "a.svslide", LEVELS[0])
    write_tiff(slides / "plain.tif", LEVELS, compression="deflate", mpp=0.5)
    (tmp_path / "stage").mkdir()
    index(config_for(slides, tmp_path / "index", f"patches.stage_dir={tmp_path / 'stage'}"))
    sakura, plain = open_snapshot(str(tmp_path / "index")).rows
    assert (sakura.header.access, plain.header.access) == ("local", "tiles")
    assert sakura.status == plain.status == "ok"
    assert sakura.tissue_mm2 == pytest.approx(plain.tissue_mm2, rel=0.02)
    assert counted[0].downloads == ["a.svslide"] and not any((tmp_path / "stage").iterdir())


def test_an_index_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index at"):
        open_snapshot(str(tmp_path / "nothing"))
    config = config_for(make_slides(tmp_path / "slides", 1), tmp_path / "index")
    index(config)
    with pytest.raises(UserError, match="no snapshot 0123"):
        open_snapshot(str(tmp_path / "index"), "0123")
    with pytest.raises(UserError, match="there is no slide x"):
        inspect_index(str(tmp_path / "index"), "x")


def test_the_real_slides_are_used_or_named_with_a_reason(tmp_path: Path) -> None:
    slides = sample("data", "slides")
    table = tmp_path / "overrides.csv"
    table.write_text("slide,mpp\nTCGA-CR-7395-01A-01-TS1.svs,0.25\n")
    index(config_for(slides, tmp_path / "bare"))
    assert statuses(tmp_path / "bare") == {
        "CMU-1-Small-Region.svs": "ok", "TCGA-CR-7395-01A-01-TS1.svs": "no-mpp",
        "gcp_jp2k.dcm": "too-coarse", "gcp_jpeg.dcm": "too-coarse",
    }  # fmt: skip
    index(config_for(slides, tmp_path / "cured", f"slides.overrides={table}", "index.max_mpp=50"))
    assert set(statuses(tmp_path / "cured").values()) == {"ok"}
    for row in open_snapshot(str(tmp_path / "cured")).rows:
        assert row.tissue is not None and 0.05 < row.tissue.array.mean() < 0.95


@pytest.mark.e2e
def test_an_index_in_s3_is_the_one_made_on_disk(tmp_path: Path, bucket_uri: str) -> None:
    slides = make_slides(tmp_path / "slides", 2)
    write_tiff(slides / "staged, é.tif", LEVELS, compression="packbits")
    upload(slides, f"{bucket_uri}/slides")
    config = config_for(f"{bucket_uri}/slides", f"{bucket_uri}/index")
    manifest = index(config, 2)
    assert manifest.num_ok == 3 and index(config, 2) == manifest
    local = index(config_for(slides, tmp_path / "index"))
    assert manifest.tissue_mm2 == local.tissue_mm2
    shutil.rmtree(tmp_path / "index")
