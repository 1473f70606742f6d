"""Putting slides into the bucket: what is there stays, what changed is replaced, what went is removed."""

import os
from pathlib import Path

import pytest

from eosin.demo.run import upload, users_material
from eosin.errors import UserError
from eosin.storage import open_store


def keys(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {info.key: store.get(info.key) for info in store.list()}


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_folder_keeps_its_names_and_shape(tmp_path: Path) -> None:
    write(tmp_path / "in" / "case 1" / "slide ü.svs", b"one")
    write(tmp_path / "in" / ".hidden" / "x.svs", b"no")
    material = users_material(str(tmp_path / "out"), str(tmp_path / "in"), "")
    assert keys(material.slides_uri) == {"case 1/slide ü.svs": b"one"}


def test_second_upload_replaces_what_changed_and_removes_what_went(tmp_path: Path) -> None:
    for name in ("a.svs", "b.svs"):
        write(tmp_path / "in" / name, b"old")
    first = users_material(str(tmp_path / "out"), str(tmp_path / "in"), "")
    (tmp_path / "in" / "a.svs").unlink()
    write(tmp_path / "in" / "b.svs", b"new!")
    second = users_material(str(tmp_path / "out"), str(tmp_path / "in"), "")
    assert keys(second.slides_uri) == {"b.svs": b"new!"} and second.digest != first.digest


def test_same_size_but_newer_is_replaced(tmp_path: Path) -> None:
    path, store = tmp_path / "a.svs", open_store(str(tmp_path / "out"))
    write(path, b"old")
    upload(store, [("a.svs", path)])
    write(path, b"new")
    later_s = store.head("a.svs").modified_s + 10
    os.utime(path, (later_s, later_s))
    upload(store, [("a.svs", path)])
    assert store.get("a.svs") == b"new"


def test_unchanged_files_are_not_sent_again(tmp_path: Path) -> None:
    path, store = tmp_path / "a.svs", open_store(str(tmp_path / "out"))
    write(path, b"old")
    os.utime(path, (1e9, 1e9))
    upload(store, [("a.svs", path)])
    before = store.head("a.svs")
    upload(store, [("a.svs", path)])
    assert store.head("a.svs") == before


def test_two_folders_never_share_a_place(tmp_path: Path) -> None:
    places = set()
    for name in ("x", "y"):
        write(tmp_path / name / "a.svs", b"1")
        places.add(users_material(str(tmp_path / "out"), str(tmp_path / name), "").slides_uri)
    assert len(places) == 2


def test_overrides_are_published_by_content(tmp_path: Path) -> None:
    write(tmp_path / "a.svs", b"1")
    write(tmp_path / "o.csv", b"slide,mpp\na.svs,0.25\n")
    (setting,) = users_material(
        str(tmp_path / "out"), str(tmp_path / "a.svs"), str(tmp_path / "o.csv")
    ).settings
    assert setting.startswith("slides.overrides=") and "overrides/" in setting


@pytest.mark.parametrize("missing", ["none", "none.svs"])
def test_missing_slides_are_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        users_material(str(tmp_path / "out"), str(tmp_path / missing), "")


def test_missing_overrides_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.svs", b"1")
    with pytest.raises(UserError, match=r"none\.csv"):
        users_material(str(tmp_path / "out"), str(tmp_path / "a.svs"), str(tmp_path / "none.csv"))


def test_a_folder_that_cannot_be_read_is_named_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.svs", b"one")
    write(tmp_path / "in" / "closed" / "b.svs", b"two")
    scandir = os.scandir

    def refusing(folder: Path) -> object:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"cannot list .*closed: Permission denied"):
        users_material(str(tmp_path / "out"), str(tmp_path / "in"), "")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.svs", b"one")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "itself").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "in")
    material = users_material(str(tmp_path / "out"), str(tmp_path / "in"), "")
    assert keys(material.slides_uri) == {"linked/a.svs": b"one"}
