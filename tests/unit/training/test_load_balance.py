"""Microbatches follow the ranks' speed; the trajectory does not."""

import json
from pathlib import Path

import pytest

from eosin.config.train import ElasticConfig
from eosin.observability import RunLog
from eosin.training.engine.load_balance import (
    LoadBalancer,
    Stopwatch,
    balanced_shares,
    granularity_advice,
    known_times,
)
from eosin.training.world import World
from tests.support.ranks import Leg, norm_difference, train_legs
from tests.support.training_run import tiny_config


@pytest.mark.parametrize(
    ("times_s", "num_microbatches", "shares"),
    [
        ([1, 1], 8, [4, 4]),
        ([1, 3], 8, [6, 2]),
        ([3, 1], 8, [2, 6]),
        ([1, 1, 1], 8, [3, 3, 2]),
        ([1, 100], 8, [7, 1]),
        ([1, 2, 4], 14, [8, 4, 2]),
        ([1, 1, 1], 2, [1, 1, 0]),
    ],
)
def test_the_slowest_ends_as_early_as_it_can(
    times_s: list[float], num_microbatches: int, shares: list[int]
) -> None:
    assert balanced_shares(times_s, num_microbatches) == shares


def test_a_new_rank_is_taken_for_a_middling_one() -> None:
    assert known_times([1.0, None, 3.0, 2.0]) == [1.0, 2.0, 3.0, 2.0]
    assert known_times([None, None]) == []


@pytest.mark.parametrize(
    ("num_microbatches", "world_size", "says"), [(8, 2, False), (8, 3, True), (1, 1, False)]
)
def test_fewer_than_four_microbatches_a_rank_are_advised_against(
    num_microbatches: int, world_size: int, says: bool
) -> None:
    assert (
        f"train.num_microbatches={4 * world_size}" in granularity_advice(num_microbatches, world_size)
    ) == says


def test_intervals_cover_all_steps_and_the_first_is_short() -> None:
    balancer = LoadBalancer(
        ElasticConfig(load_balance_every_steps=25), World(8, 0, 2), RunLog("test"), in_step=False
    )
    intervals = list(balancer.intervals(7, 60))
    assert [step for interval in intervals for step in interval] == list(range(7, 60))
    assert [len(interval) for interval in intervals] == [10, 25, 18]


@pytest.mark.parametrize(
    ("config", "world", "in_step"),
    [
        (ElasticConfig(load_balance="even"), World(8, 0, 2), False),
        (ElasticConfig(), World(8), False),
        (ElasticConfig(), World(8, 0, 2), True),
    ],
    ids=["asked not to", "alone", "sharded"],
)
def test_shares_stay_where_balancing_would_not_help(
    config: ElasticConfig, world: World, in_step: bool
) -> None:
    balancer = LoadBalancer(config, world, RunLog("test"), in_step=in_step)
    assert list(balancer.intervals(3, 90)) == [range(3, 90)]
    balancer.balance()
    assert world.shares == []


class OtherRankTold(LoadBalancer):
    """With the time of the other rank given."""

    def of_others(self, other: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(World, "gather_json", lambda world, own: [own, other])


def test_a_time_is_remembered_for_the_next_world_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stopwatch, "lap", lambda self: 4.0)
    world = World(8, 0, 2)
    balancer = OtherRankTold(ElasticConfig(), world, RunLog("test"), in_step=False)
    balancer.memory = tmp_path / "time-of-0"
    balancer.of_others(0.25, monkeypatch)
    balancer.balance()
    assert world.shares == [], "nothing is known of this rank yet, and the other is as good"
    for _ in range(3):
        balancer.stepped(0.0)
    balancer.balance()
    assert world.shares == [1, 7]
    assert json.loads(balancer.memory.read_text()) == 1.0
    again = World(8, 0, 2)
    later = OtherRankTold(ElasticConfig(), again, RunLog("test"), in_step=False)
    later.memory = balancer.memory
    later.balance()
    assert again.shares == [1, 7]


@pytest.mark.parametrize("left", ["", "not a number", "-1", "[]"])
def test_an_unreadable_memory_of_the_time_is_none(
    tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(8, 0, 2)
    balancer = OtherRankTold(ElasticConfig(), world, RunLog("test"), in_step=False)
    balancer.memory = tmp_path / "time-of-0"
    balancer.memory.write_text(left)
    balancer.of_others(None, monkeypatch)
    balancer.balance()
    assert world.shares == []


def test_a_small_difference_does_not_change_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "lap", lambda self: 4.0)
    world = World(8, 0, 2)
    balancer = OtherRankTold(ElasticConfig(), world, RunLog("test"), in_step=False)
    balancer.stepped(0.0)
    balancer.stepped(0.0)
    balancer.of_others(1.04, monkeypatch)
    balancer.balance()
    assert world.shares == []


def test_a_slow_rank_gets_fewer_microbatches_and_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(num_steps=12)
    alone = train_legs(config, tmp_path / "1", [Leg(1, 12)])
    shared = train_legs(config, tmp_path / "2", [Leg(2, 12, slow_rank=1)])
    consumed = [
        sorted(tuple(json.loads(line)) for line in path.read_text().splitlines())
        for path in sorted((tmp_path / "2").glob("consumed-*.jsonl"))
    ]
    last = sorted(len(lines[-1][1]) // config.train.microbatch_size for lines in consumed)
    assert last[0] < 4 < last[1] and sum(last) == 8
    assert norm_difference(shared, alone) <= 1e-5
