"""What a dry run refuses, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from eosin import steps
from eosin.dry_run import StepPlan, plan_run
from eosin.errors import UserError
from eosin.layout import RunLayout


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "a.svs").write_bytes(b"never opened")
    return folder


def source(slides: Path, settings: Sequence[str] = ()) -> steps.ConfigSource:
    return steps.ConfigSource("demo", settings, str(slides))


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_it_writes_nothing(slides: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    plan = plan_run(steps.resolve_config(source(slides)), str(tmp_path / "runs" / "a"))
    assert (plan.num_objects, plan.total_bytes) == (1, len(b"never opened"))
    assert any(uri.endswith(RunLayout.SUMMARY_HTML) for step in plan.steps for uri in step.writes)
    assert everything(tmp_path) == before


def test_overrides_that_are_not_there_are_refused_before_anything_runs(slides: Path, tmp_path: Path) -> None:
    settings = [f"slides.overrides={tmp_path / 'none.csv'}"]
    with pytest.raises(UserError, match=r"none\.csv"):
        plan_run(steps.resolve_config(source(slides, settings)), str(tmp_path / "runs/a"))


def test_a_bucket_for_the_run_that_is_not_there_is_refused(slides: Path, bucket_uri: str) -> None:
    with pytest.raises(UserError, match="no bucket there-is-none"):
        plan_run(steps.resolve_config(source(slides)), "s3://there-is-none/runs/a")


def test_a_run_begun_otherwise_is_a_warning_with_the_difference(slides: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "a")
    steps.plan(run, source(slides, ["seed=1"]))
    plan = plan_run(steps.resolve_config(source(slides, ["seed=2"])), run)
    assert "the run was begun with another configuration: seed: 1 → 2" in plan.warnings


def steps_of(slides: Path, run: str, pipeline: str, **arguments: str) -> dict[str, StepPlan]:
    config = steps.resolve_config(source(slides))
    plan = plan_run(config, run, pipeline=pipeline, arguments=arguments)
    return {step.step: step for step in plan.steps}


def test_evaluating_a_stranger_trains_nothing(slides: Path, tmp_path: Path) -> None:
    found = steps_of(slides, str(tmp_path / "runs/a"), "evaluate", teacher="s3://b/runs/x/teachers/y")
    assert list(found) == ["plan", "index", "decode", "evaluate", "summarize"]
    assert found["evaluate"].reads[0] == "s3://b/runs/x/teachers/y"
    assert not any(uri.endswith(RunLayout.TEACHERS) for uri in found["evaluate"].reads)


def test_retraining_names_its_registry_and_its_gate(slides: Path, tmp_path: Path) -> None:
    found = steps_of(
        slides, str(tmp_path / "runs/a"), "retrain", registry="s3://b/reg", name="he", min_new_slides="7"
    )
    assert list(found)[:3] == ["plan", "index", "gate"] and list(found)[-1] == "promote"
    assert "7 new slides" in found["gate"].note
    assert found["promote"].writes == ("s3://b/reg/models/he.json",)


def test_the_pools_of_a_jobset_are_shown_with_their_price(slides: Path, tmp_path: Path) -> None:
    pools = (
        "[{name: anchor, price_usd_per_hour: 4}, {name: spot, spot: true, max_nodes: 3, gpus_per_node: 8}]"
    )
    settings = [f"cluster.pools={pools}"]
    plan = plan_run(steps.resolve_config(source(slides, settings)), str(tmp_path / "runs/a"))
    assert plan.figures["pool anchor"] == "1 nodes (on demand), 1 GPUs, 1 workers, 4 USD an hour"
    assert plan.figures["pool spot"] == "0–3 nodes (spot), 0–24 GPUs, 0–24 workers"
