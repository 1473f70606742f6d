"""Which tasks get figures from elsewhere."""

from __future__ import annotations

import pytest

from eosin.summary.published_figures import LEADERBOARD, PAPER, published_figures
from eosin.summary.result import Result


def _result(task: str, kind: str = "linear-probe") -> Result:
    return Result(model="m", step=1, task=task, kind=kind, metric="balanced_accuracy", mean=0.5, std=0.0,
                  num_runs=5, status="ok")  # fmt: skip


@pytest.mark.parametrize("task", ["crc", "crc-linear"])
def test_a_task_of_a_public_dataset_gets_them_with_their_source(task: str) -> None:
    found = {(each.model, each.source): each.value for each in published_figures([_result(task)])}
    assert found["kaiko ViT-S/16", PAPER] == 0.943
    assert found["Virchow2", LEADERBOARD] == 0.967
    assert len(found) == 12


def test_a_segmentation_task_gets_dice_and_a_gap_stays_a_gap() -> None:
    found = {
        (each.model, each.metric): each.value
        for each in published_figures([_result("consep", "segmentation")])
    }
    assert found["Virchow2", "dice"] == 0.640
    assert {metric for _, metric in found} == {"dice"}
    tp53 = {each.model for each in published_figures([_result("tp53", "slide")])}
    assert tp53 == {"kaiko ViT-S/8", "kaiko ViT-B/16", "kaiko ViT-L/14"}


def test_a_dataset_that_only_one_source_has() -> None:
    assert {each.source for each in published_figures([_result("gleason")])} == {LEADERBOARD}


@pytest.mark.parametrize(
    ("task", "kind"), [("textures", "linear-probe"), ("crc", "knn"), ("pcam-10-shot", "linear-probe")]
)
def test_other_tasks_get_none(task: str, kind: str) -> None:
    assert published_figures([_result(task, kind)]) == []
