"""What a training cost: by hours and pools in its log, and what its report tells later runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig
from eosin.layout import RunLayout
from eosin.preflight import compare_pools
from eosin.storage import open_store
from eosin.summary.training_log import Cost, Event, read_training_log, training_cost, training_health

HOUR = 3600.0
POOLS = [
    {"name": "anchor", "gpus_per_node": 4, "price_usd_per_hour": 40.0},
    {"name": "spot", "gpus_per_node": 8, "price_usd_per_hour": 16.0, "spot": True, "max_nodes": 2},
]


def config(*pools: dict[str, Any]) -> RunConfig:
    section = {"pools": list(pools)}
    return RunConfig.model_validate({"recipe": "r", "train": {"batch_size": 64}, "cluster": section})


def step(seconds: float, number: int, size: int) -> Event:
    return Event(seconds, "train-00000", "step", {"step": number, "loss": 3.0, "world_size": size})


def world(seconds: float, start_step: int, **pools: int) -> Event:
    fields = {"world_size": sum(pools.values()), "start_step": start_step, "device": "cuda", "pools": pools}
    return Event(seconds, "train-00000", "world", fields)


def cost_of(events: list[Event], *pools: dict[str, Any]) -> Cost:
    log = read_training_log(events)
    assert log is not None
    return training_cost(log, events, config(*pools))


def test_restarts_and_cost_come_from_the_log() -> None:
    worlds = ((0, 4), (HOUR, 2))
    begun = [Event(t, "train-00000", "world", {"world_size": n, "device": "cuda"}) for t, n in worlds]
    events = sorted([*begun, step(0, 1, 4), step(HOUR, 10, 2), step(2 * HOUR, 20, 2)], key=lambda e: e.time_s)
    log = read_training_log(events)
    assert log is not None
    assert "its workers began anew once" in training_health(log, num_prototypes=9, has_ended=False).sentence
    cost = cost_of(events, POOLS[0])
    assert (cost.num_images, cost.wall_s, cost.worker_hours, cost.usd) == (1280, 2 * HOUR, 6.0, (60.0, 60.0))
    assert cost.pools == (), "the log of an earlier eosin names no pools"


def test_preempted_hours_and_their_price_stand_by_pool() -> None:
    events = [
        world(0, 0, anchor=4, spot=16),
        step(0.0, 0, 20), step(1 * HOUR, 100, 20), step(1.5 * HOUR, 150, 20),
        world(2 * HOUR, 100, anchor=4),  # half an hour's steps are done again; half an hour was waited
        step(2 * HOUR, 110, 4), step(4 * HOUR, 210, 4),
        world(4 * HOUR, 210, anchor=4, spot=8),
        step(5 * HOUR, 400, 12),
    ]  # fmt: skip
    anchor, spot = cost_of(events, *POOLS).pools
    assert (anchor.worker_hours, anchor.num_lost, anchor.lost_worker_hours) == (20.0, 0, 4.0)
    assert (anchor.usd, anchor.lost_usd) == (200.0, 40.0)
    assert (spot.spot, spot.worker_hours, spot.num_lost, spot.lost_worker_hours) == (True, 40.0, 16, 16.0)
    assert (spot.usd, spot.lost_usd) == (80.0, 32.0)
    # 100 steps of 64 images by 4 workers in two hours; spot was never alone.
    assert (anchor.images_per_worker_hour, spot.images_per_worker_hour) == (800.0, None)


@pytest.mark.parametrize("measured", [True, False])
def test_pools_are_compared_by_what_earlier_runs_of_the_recipe_measured(
    tmp_path: Path, measured: bool
) -> None:
    speeds = {"anchor": 1000.0, "spot": 1500.0 if measured else None}
    pools = [{"pool": name, "spot": name == "spot", "worker_hours": 2.0, "num_lost": 0,
              "lost_worker_hours": 0.0,
              "images_per_worker_hour": speed} for name, speed in speeds.items()]  # fmt: skip
    cost = {"num_images": 4800, "wall_s": HOUR, "worker_hours": 4.0, "on_gpus": True, "pools": pools}
    for name, recipe, more in (
        ("a", "r", cost), ("b", "other", {**cost, "num_images": 9}), ("c", "r", None), ("d", "r", {"odd": 1}),
    ):  # fmt: skip
        summary = {
            "recipe": recipe,
            "provenance": {"first_event": f"2026-{name}"},
            "results": [],
            "cost": more,
        }
        open_store(str(tmp_path / name)).put(RunLayout.SUMMARY_JSON, json.dumps(summary).encode())
    run = str(tmp_path / "new")
    lines = compare_pools(config(*POOLS), run)
    source = f"measured in {tmp_path}/a"
    assert lines["pool anchor"].endswith(
        f"40 USD an hour; 4,000 images an hour and node, 10000.00 USD a million ({source})"
    )
    told = (
        f"12,000 images an hour and node, 1333.33 USD a million ({source})"
        if measured
        else (f"9,600 images an hour and node, 1666.67 USD a million ({source}, all pools together)")
    )
    assert lines["pool spot"].endswith(told)
    assert lines["cheapest pool"].startswith("spot, ")
    assert "not measured in a run of r" in compare_pools(config({"name": "new"}), run)["pool new"]
