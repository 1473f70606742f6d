"""Which tasks get figures from elsewhere: those that follow a preset, whole and unchanged, and no others."""

from typing import Any

import pytest

from eosin.config.presets import PRESETS
from eosin.evaluation.evaluate import preset_of
from eosin.evaluation.tasks.linear_probe import LinearProbeTask
from eosin.summary.leaderboard import LEADERBOARD, PAPER, published_figures
from eosin.summary.results import Result


def _result(task: str, kind: str = "linear-probe", preset: str = "") -> Result:
    return Result(model="m", step=1, task=task, kind=kind, metric="balanced_accuracy", mean=0.5, std=0.0,
                  num_runs=5, status="ok", preset=preset)  # fmt: skip


def test_a_task_that_followed_a_preset_gets_them_with_their_source_whatever_its_name() -> None:
    found = {
        (each.model, each.source): each.value for each in published_figures([_result("colon", preset="crc")])
    }
    assert found["kaiko ViT-S/16", PAPER] == 0.943
    assert found["Virchow2", LEADERBOARD] == 0.967
    assert len(found) == 12


def test_evas_figures_of_slides_are_those_of_its_small_sets() -> None:
    assert published_figures([_result("p", "slide", "panda"), _result("c", "slide", "camelyon16")]) == []
    found = published_figures(
        [_result("p", "slide", "panda-small"), _result("c", "slide", "camelyon16-small")]
    )
    assert {(each.task, each.value) for each in found if each.model == "Virchow2"} == {
        ("p", 0.646),
        ("c", 0.861),
    }


def test_a_dataset_that_only_one_source_has() -> None:
    assert {each.source for each in published_figures([_result("g", preset="gleason")])} == {LEADERBOARD}


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("crc-mylab", "linear-probe"), ("panda-private", "slide"), ("bach", "unsupervised"),
        ("consep-own", "segmentation"), ("pcam-centres", "centres"), ("camelyon16-small", "slide"),
        ("pcam-10shot", "linear-probe"), ("mhist", "robustness"), ("crc-knn", "linear-probe"),
    ],
)  # fmt: skip
def test_a_name_alone_brings_none(task: str, kind: str) -> None:
    assert published_figures([_result(task, kind)]) == []


def _task(name: str, **changes: Any) -> LinearProbeTask:
    return LinearProbeTask.model_validate({"name": name, "dataset": "s3://d", **PRESETS["crc"], **changes})


def test_a_preset_is_known_by_its_protocol_not_by_its_name() -> None:
    assert preset_of(_task("mine")) == "crc"
    assert preset_of(_task("crc", layout="bach")) == ""
    assert preset_of(_task("crc", layout=None)) == ""
    assert preset_of(_task("crc", probe={"patience_epochs": 7, "num_steps": 100})) == ""
