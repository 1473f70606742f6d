"""What lies in a bucket, and what of it is a slide."""

from pathlib import Path

import pytest

from eosin.index.listing import in_shard, list_units, listing_digest
from eosin.storage import open_store


def put(folder: Path, *keys: str) -> None:
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(b"x")


def test_what_is_never_a_slide_is_passed_over(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a.svs",
        "b.csv",
        "c/d.json",
        ".git/config",
        "e.geojson",
        "f.txt",
        "g.parquet",
        "h",
        "i.ndpi",
        "j.png",
        "k/l.JPG",
    )
    units, num_pictures = list_units(open_store(str(tmp_path)).list())
    kinds = [(unit.objects[0].key, unit.kind) for unit in units]
    assert kinds == [("a.svs", "slide"), ("h", "unsorted"), ("i.ndpi", "slide")] and num_pictures == 2


def test_a_mirax_slide_is_its_index_and_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "a/Index.dat", "b.svs", "c/Slidedat.dat")
    first, *others = list_units(open_store(str(tmp_path)).list())[0]
    assert [each.key for each in first.objects] == [
        "a.mrxs",
        "a/Data0000.dat",
        "a/Index.dat",
        "a/Slidedat.ini",
    ]
    assert [unit.key for unit in others] == ["b.svs", "c"]


def test_a_mirax_folder_without_its_first_object_is_one_slide(tmp_path: Path) -> None:
    put(tmp_path, "a/Slidedat.ini", "a/Data0000.dat", "a/Index.dat", "a/b.ini", "c.svs")
    found = {unit.key: len(unit.objects) for unit in list_units(open_store(str(tmp_path)).list())[0]}
    assert found == {"a/Slidedat.ini": 3, "c.svs": 1}


def test_hamamatsu_slides_of_one_folder_share_its_objects_out_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a.vms", "a-0.jpg", "a.opt", "a b.vms", "a b(1,0).jpg", "c.vmu", "c_map.ngr", "macro.jpg")
    put(tmp_path, "x/y.jpg")
    units = list_units(open_store(str(tmp_path)).list(), ["*.vm*"])[0]
    assert {unit.key: [each.key for each in unit.objects[1:]] for unit in units} == {
        "a.vms": ["a-0.jpg", "a.opt", "macro.jpg"],
        "a b.vms": ["a b(1,0).jpg", "macro.jpg"],
        "c.vmu": ["c_map.ngr", "macro.jpg"],
    }


def test_dicom_files_of_a_folder_are_read_together(tmp_path: Path) -> None:
    put(tmp_path, "x/1.dcm", "x/2.dcm", "y/1.DCM", "z.svs")
    units, _ = list_units(open_store(str(tmp_path)).list())
    assert [(unit.key, unit.kind, len(unit.objects)) for unit in units] == [
        ("x", "unsorted", 2), ("y", "unsorted", 1), ("z.svs", "slide", 1),
    ]  # fmt: skip


def test_the_digest_follows_the_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a.svs", "b.svs")
    store = open_store(str(tmp_path))
    before = listing_digest(list_units(store.list())[0])
    assert listing_digest(list_units(store.list())[0]) == before
    (tmp_path / "a.svs").write_bytes(b"other")
    assert listing_digest(list_units(store.list())[0]) != before


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_every_unit_is_in_exactly_one_shard(tmp_path: Path, num_shards: int) -> None:
    put(tmp_path, *(f"{i}.svs" for i in range(60)))
    units = list_units(open_store(str(tmp_path)).list())[0]
    owners = [[shard for shard in range(num_shards) if in_shard(unit, shard, num_shards)] for unit in units]
    assert all(len(each) == 1 for each in owners)
    assert {each[0] for each in owners} == set(range(num_shards))
