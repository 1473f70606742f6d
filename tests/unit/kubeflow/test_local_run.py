"""The pipeline's process: what it leaves to be said when it ends badly."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from eosin.errors import PermanentError, UserError
from eosin.kubeflow import local_run


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_process_that_dies_without_a_word_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_run, "_python_without_spaces", lambda work_dir: "/bin/false")
    with pytest.raises(PermanentError, match="exit code 1: it said nothing"):
        local_run.run_pipeline(tmp_path / "no.yaml", {})


def test_a_traceback_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(PermanentError) as caught:
        local_run.run_pipeline(tmp_path / "no.yaml", {})
    assert "no.yaml" in caught.value.message and "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message


def test_no_room_for_temporary_files_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, 1 << 30, 1000))
    with pytest.raises(UserError, match="temporary files") as caught:
        local_run.run_pipeline(tmp_path / "no.yaml", {})
    assert "TMPDIR" in caught.value.hint


def test_no_folder_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="temporary files"):
        local_run.run_pipeline(tmp_path / "no.yaml", {})
