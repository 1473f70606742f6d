"""What a dry run refuses, and that it leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin import steps
from eosin.dry_run import plan_run
from eosin.errors import UserError
from eosin.layout import RunLayout


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "a.svs").write_bytes(b"never opened")
    return folder


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_it_writes_nothing(slides: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    plan = plan_run(steps.resolve_config("demo", slides=str(slides)), str(tmp_path / "runs" / "a"))
    assert (plan.num_objects, plan.total_bytes) == (1, len(b"never opened"))
    assert any(uri.endswith(RunLayout.SUMMARY_HTML) for step in plan.steps for uri in step.writes)
    assert everything(tmp_path) == before


def test_overrides_that_are_not_there_are_refused_before_anything_runs(slides: Path, tmp_path: Path) -> None:
    settings = [f"slides.overrides={tmp_path / 'none.csv'}"]
    with pytest.raises(UserError, match=r"none\.csv"):
        plan_run(
            steps.resolve_config("demo", slides=str(slides), settings=settings), str(tmp_path / "runs/a")
        )


def test_a_bucket_for_the_run_that_is_not_there_is_refused(slides: Path, bucket_uri: str) -> None:
    with pytest.raises(UserError, match="no bucket there-is-none"):
        plan_run(steps.resolve_config("demo", slides=str(slides)), "s3://there-is-none/runs/a")


def test_a_run_begun_otherwise_is_a_warning_with_the_difference(slides: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "a")
    steps.plan(run, recipe="demo", slides=str(slides), settings=["seed=1"])
    plan = plan_run(steps.resolve_config("demo", slides=str(slides), settings=["seed=2"]), run)
    assert "the run was begun with another configuration: seed: 1 → 2" in plan.warnings
