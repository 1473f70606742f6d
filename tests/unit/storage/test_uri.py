"""What a URI means, and that writing it down again changes nothing."""

import os
from pathlib import Path

import pytest

from eosin.errors import UserError
from eosin.storage import join_uri, open_store, split_uri
from eosin.storage.uri import parse_uri


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("s3://b", "s3://b"),
        ("s3://b/", "s3://b"),
        ("S3://b/a/c/", "s3://b/a/c"),
        ("s3://b//a", "s3://b/a"),
        ("s3://b/a//c", "s3://b/a//c"),
        ("s3://b/with space/ü#?%20", "s3://b/with space/ü#?%20"),
        ("  s3://b/a \n", "s3://b/a"),
        ("file:///a/b/", "file:///a/b"),
        ("file://localhost/a", "file:///a"),
        ("file:///a%20b/%C3%BC", "file:///a b/ü"),
        ("/a b/../c", "file:///c"),
        ("/100%/x", "file:///100%25/x"),
        ("file:///100%25/x", "file:///100%25/x"),
    ],
)
def test_canonical_form(uri: str, canonical: str) -> None:
    assert parse_uri(uri).uri == canonical
    assert parse_uri(canonical).uri == canonical
    assert open_store(canonical).uri == canonical


def test_plain_paths_are_taken_from_here_and_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parse_uri("runs/a").path == f"{tmp_path}/runs/a"
    assert parse_uri("~/runs").path == f"{tmp_path}/home/runs"


def test_path_as_uri_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "a b%20ü"
    assert parse_uri(path.as_uri()).path == str(path)


@pytest.mark.parametrize("uri", ["", "  ", "s3://", "s3:///key", "gs://b/x", "http://h/x", "file://host/x"])
def test_what_cannot_be_meant_is_refused(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(uri)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("s3://b",), "s3://b"),
        (("s3://b/", "a"), "s3://b/a"),
        (("s3://b/r", "/a/", "b/"), "s3://b/r/a/b/"),
        (("s3://b/r", "", "a"), "s3://b/r/a"),
        (("s3://b", "50%"), "s3://b/50%"),
        (("/x", "50%", "y"), "file:///x/50%25/y"),
        (("file:///", "a"), "file:///a"),
    ],
)
def test_joining(parts: tuple[str, ...], joined: str) -> None:
    assert join_uri(*parts) == joined


@pytest.mark.parametrize("uri", ["s3://b/a/ü b.svs", "s3://b", "/data/a%b/c d.svs"])
def test_split_parts_join_again(uri: str) -> None:
    root, key = split_uri(uri)
    assert join_uri(root, key) == parse_uri(uri).uri


def test_a_split_file_uri_opens(tmp_path: Path) -> None:
    (tmp_path / "a%b c").write_bytes(b"x")
    root, key = split_uri(os.fspath(tmp_path / "a%b c"))
    assert open_store(root).get(key) == b"x"


@pytest.mark.parametrize("uri", ["s3:/bucket/run", "S3:bucket/run", "file:/data"])
def test_a_slash_too_few_is_no_folder(uri: str) -> None:
    with pytest.raises(UserError, match="`://` is missing"):
        parse_uri(uri)
    assert parse_uri(f"./{uri}").scheme == "file"
