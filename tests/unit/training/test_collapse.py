"""Collapse is seen where it is, and only there."""

import math
import re

import pytest
import torch

from eosin.config.train import CollapseConfig
from eosin.training.collapse import CollapseWatch, RollingSample, signals_of

GENERATOR = torch.Generator().manual_seed(23)


def features(num: int, rank: int, dim: int = 24) -> torch.Tensor:
    """`num` rows that span `rank` of `dim` dimensions."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=GENERATOR))[0][:rank]
    return torch.randn(num, rank, generator=GENERATOR) @ basis


def watch(**config: object) -> CollapseWatch:
    return CollapseWatch(CollapseConfig.model_validate(config), num_prototypes=100, first_step=10)


def test_the_sample_holds_the_newest_rows_and_nothing_before_it_is_full() -> None:
    sample = RollingSample(16)
    rows = torch.arange(60.0)[:, None].expand(60, 3)
    sample.add(rows[:10])
    assert sample.rows() is None
    sample.add(rows[10:20])
    found = sample.rows()
    assert found is not None and sorted(found[:, 0].tolist()) == list(range(4, 20))
    sample.add(rows[20:60])  # more at once than it holds
    found = sample.rows()
    assert found is not None and sorted(found[:, 0].tolist()) == list(range(44, 60))


def test_signals_tell_spread_features_from_collapsed_ones() -> None:
    spread, flat, alike = features(64, 24), features(64, 2), features(64, 24) * 0.01 + 5.0
    assert signals_of(spread)["rankme"] > 18 and signals_of(spread)["feature_center_norm"] < 0.4
    assert signals_of(flat)["rankme"] < 2.1 and signals_of(flat)["feature_center_norm"] < 0.5
    assert signals_of(alike)["feature_center_norm"] > 0.999
    assert signals_of(torch.zeros(16, 4)) == {} and signals_of(torch.full((16, 4), math.nan)) == {}


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"teacher_entropy": 0.03}, r"one prototype each \(entropy 0\.03, floor 0\.0461 of at most 4\.61"),
        ({"rankme": 1.4}, r"hardly use 1\.40 dimensions"),
        ({"feature_center_norm": 0.9991}, r"point the same way \(norm of their centre 0\.9991"),
    ],
)
def test_each_signal_warns_once_until_it_has_recovered(signals: dict[str, float], message: str) -> None:
    judge = watch().judge
    healthy = {"teacher_entropy": 3.0, "rankme": 9.0, "feature_center_norm": 0.5}
    (text,) = judge(10, healthy | signals)
    assert re.search(message, text)
    assert judge(11, healthy | signals) == []
    assert judge(12, healthy) == []
    assert len(judge(13, healthy | signals)) == 1


def test_nothing_is_judged_before_the_first_step() -> None:
    assert watch().judge(9, {"rankme": 1.0, "teacher_entropy": 0.0}) == []


def test_training_stops_only_where_asked_and_only_after_patience() -> None:
    collapsed = {"rankme": 1.0}
    patient, only_warns = watch(stop=True, patience=2), watch(patience=1)
    patient.judge(20, collapsed)
    assert patient.verdict(collapsed) == ""
    patient.judge(30, {"rankme": 8.0})
    patient.judge(40, collapsed)
    assert patient.verdict(collapsed) == ""
    patient.judge(50, collapsed)
    assert "RankMe" in patient.verdict(collapsed)
    only_warns.judge(20, collapsed)
    assert only_warns.verdict(collapsed) == ""
