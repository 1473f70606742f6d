"""A full disk is named, whatever else failed because of it."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from eosin.demo.run import NEEDED_BYTES, room
from eosin.errors import TransientError, UserError


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def use(monkeypatch: pytest.MonkeyPatch, *free_bytes: int, total: int = 1 << 34) -> None:
    answers = iter(Usage(total, total - free, free) for free in free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(answers))


def test_too_little_room_is_said_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, NEEDED_BYTES - 1)
    with pytest.raises(UserError, match=str(tmp_path)), room(tmp_path):
        pytest.fail("it began")


@pytest.mark.parametrize(("free_bytes", "total"), [(0, 1 << 34), (150 << 20, 1 << 34)])
def test_a_failure_on_a_full_disk_is_the_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, total: int
) -> None:
    use(monkeypatch, NEEDED_BYTES, free_bytes, total=total)
    with pytest.raises(UserError, match=r"is full .*: s3://b/k answered InternalError"), room(tmp_path):
        raise TransientError("s3://b/k answered InternalError")


def test_any_other_failure_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, NEEDED_BYTES, NEEDED_BYTES)
    with pytest.raises(TransientError, match="busy"), room(tmp_path):
        raise TransientError("busy")
