"""A disk that cannot take a slide is the user's to hear of, not a traceback."""

from collections import namedtuple
from pathlib import Path

import pytest

import eosin.slides.staging as staging
from eosin.errors import TransientError, UserError
from eosin.slides.errors import SlideError
from eosin.slides.model import SlideObject
from eosin.slides.staging import staged
from eosin.storage import ObjectInfo, open_store
from tests.support.counting import CountingStore

Usage = namedtuple("Usage", "total used free")


def test_objects_keep_their_places_and_are_gone_afterwards(tmp_path: Path) -> None:
    (tmp_path / "s" / "deep" / "a").mkdir(parents=True)
    (tmp_path / "s" / "deep" / "a.mrxs").write_bytes(b"index")
    (tmp_path / "s" / "deep" / "a" / "Slidedat.ini").write_bytes(b"data")
    (tmp_path / "stage").mkdir()
    store = open_store(str(tmp_path / "s"))
    listed = [store.head(key) for key in ("deep/a.mrxs", "deep/a/Slidedat.ini")]
    objects = [SlideObject(each.key, each.etag, each.size_bytes) for each in listed]
    with staged(store, objects, tmp_path / "stage") as path:
        assert path.read_bytes() == b"index"
        assert (path.parent / "a" / "Slidedat.ini").read_bytes() == b"data"
    assert not any((tmp_path / "stage").iterdir())


def test_a_slide_replaced_since_it_was_listed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.ndpi").write_bytes(b"new")
    with (
        pytest.raises(SlideError, match=r"a\.ndpi was replaced"),
        staged(open_store(str(tmp_path)), [SlideObject("a.ndpi", "old", 3)]),
    ):
        raise AssertionError("staged all the same")


class _Short(CountingStore):
    """The first `num_short` downloads bring half of the object."""

    num_short = 0

    def download(self, key: str, path: Path) -> ObjectInfo:
        found = super().download(key, path)
        if len(self.downloads) <= self.num_short:
            path.write_bytes(path.read_bytes()[: found.size_bytes // 2])
        return found


@pytest.mark.parametrize("num_short", [1, 4, 5])
def test_an_object_that_comes_short_is_fetched_again(tmp_path: Path, num_short: int) -> None:
    (tmp_path / "a.ndpi").write_bytes(b"0123456789")
    store = _Short(open_store(str(tmp_path)))
    store.num_short = num_short
    info = store.head("a.ndpi")
    objects = [SlideObject("a.ndpi", info.etag, info.size_bytes)]
    if num_short == 5:
        with (
            pytest.raises(TransientError, match=r"a\.ndpi came short 5 times: 5 of 10"),
            staged(store, objects),
        ):
            raise AssertionError("staged all the same")
    else:
        with staged(store, objects) as path:
            assert path.read_bytes() == b"0123456789"


def test_a_full_disk_is_said_so_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    with (
        pytest.raises(UserError, match=r"cannot stage a\.ndpi in .*No space left") as caught,
        staged(open_store(str(tmp_path)), [SlideObject("a.ndpi", "e", 2**40)], tmp_path),
    ):
        raise AssertionError("staged all the same")
    assert "stage_dir" in caught.value.hint


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="No such file"),
        staged(open_store(str(tmp_path)), [SlideObject("a.ndpi", "e", 1)], tmp_path / "gone"),
    ):
        raise AssertionError("staged all the same")
