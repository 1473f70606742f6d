"""The number of ranks changes speed, never the trajectory."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eosin.config import RunConfig
from eosin.training.world import World, share_of
from tests.support.ranks import Leg, norm_difference, train_legs
from tests.support.training_run import tiny_config

DINO = {"method": "dino", "num_microbatches": 4}
SEPARATE_HEADS = tiny_config(
    num_steps=20,
    # Sets of the whole batch and of two microbatches, which ranks do not hold alone.
    koleo={"set_size": 16},
    kde={"weight": 0.1, "set_size": 4},
    model={"ibot_head": {"num_prototypes": 48, "hidden_dim": 32, "bottleneck_dim": 16}},
)


def consumed(folder: Path) -> list[tuple[int, int]]:
    """(step, sample index) of everything that was read, sorted."""
    lines = [line for path in folder.glob("consumed-*.jsonl") for line in path.read_text().splitlines()]
    return sorted((step, index) for step, indices in map(json.loads, lines) for index in indices)


@pytest.mark.parametrize(
    ("world_size", "shares"), [(1, [8]), (3, [3, 3, 2]), (8, [1] * 8), (10, [1] * 8 + [0, 0])]
)
def test_shares_cover_every_microbatch_once(world_size: int, shares: list[int]) -> None:
    owned = [share_of(rank, world_size, 8) for rank in range(world_size)]
    assert [len(share) for share in owned] == shares
    assert [microbatch for share in owned for microbatch in share] == list(range(8))


def test_sums_in_microbatch_order_do_not_depend_on_how_microbatches_are_held() -> None:
    parts = {
        microbatch: torch.randn(50, generator=torch.Generator().manual_seed(microbatch)) * 1e4**microbatch
        for microbatch in range(4)
    }
    ordered = World(4, deterministic=True).sum_over_microbatches(dict(reversed(parts.items())), parts[0])
    by_hand = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert torch.equal(ordered, by_hand)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Twenty steps of one rank."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, train_legs(SEPARATE_HEADS, folder, [Leg(1, 20)])


def test_two_ranks_end_where_one_does(tmp_path: Path, alone: tuple[Path, dict[str, Tensor]]) -> None:
    shared = train_legs(SEPARATE_HEADS, tmp_path, [Leg(2, 20)])
    assert norm_difference(shared, alone[1]) <= 1e-5
    assert consumed(tmp_path) == consumed(alone[0]) == [(t, i) for t in range(20) for i in range(16)]


def test_uneven_shares_restarts_and_another_spread_in_between_end_where_one_rank_does(
    tmp_path: Path, alone: tuple[Path, dict[str, Tensor]]
) -> None:
    """From one rank to three that hold shards of 3, 3 and 2 microbatches, to two with whole copies."""
    legs = [Leg(1, 6), Leg(3, 13, "fsdp"), Leg(2, 20, "ddp")]
    changing = train_legs(SEPARATE_HEADS, tmp_path, legs)
    assert norm_difference(changing, alone[1]) <= 1e-5
    assert consumed(tmp_path) == consumed(alone[0])


def test_dino_with_centring_ends_alike_in_two_ranks_that_hold_shards(tmp_path: Path) -> None:
    config = tiny_config(num_steps=8, **DINO)
    one = train_legs(config, tmp_path / "1", [Leg(1, 8)])
    two = train_legs(config, tmp_path / "2", [Leg(2, 8, "fsdp")])
    assert norm_difference(two, one) <= 1e-5


def test_deterministic_mode_gives_the_same_bits_at_any_world_size(tmp_path: Path) -> None:
    config = tiny_config(num_steps=5, deterministic=True, koleo={"set_size": 8})
    alone = train_legs(config, tmp_path / "1", [Leg(1, 5)])
    uneven = train_legs(config, tmp_path / "3", [Leg(2, 2, "ddp"), Leg(3, 5, "fsdp")])
    assert alone.keys() == uneven.keys()
    assert all(torch.equal(alone[name], uneven[name]) for name in alone)


METHODS: dict[str, dict[str, object]] = {"dinov2": {}, "dino": {"method": "dino"}}
WORLDS = {
    "2": [Leg(2, 20)],
    "3 on 8 microbatches": [Leg(3, 20)],
    "4": [Leg(4, 20)],
    "1, 3, 2": [Leg(1, 7), Leg(3, 13), Leg(2, 20)],
}


@pytest.fixture(scope="module", params=METHODS)
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path, dict[str, Tensor]]:
    """Twenty steps of one rank, by method; 8 microbatches."""
    config = tiny_config(num_steps=20, **METHODS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    return config, folder, train_legs(config, folder, [Leg(1, 20)])


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("legs", WORLDS.values(), ids=WORLDS)
def test_every_world_ends_where_one_rank_does(
    tmp_path: Path, legs: list[Leg], parallel: str, undisturbed: tuple[RunConfig, Path, dict[str, Tensor]]
) -> None:
    config, folder, alone = undisturbed
    ended = train_legs(config, tmp_path, [replace(leg, parallel=parallel) for leg in legs])
    difference = norm_difference(ended, alone)
    print(f"{config.train.method} {parallel} {[leg.num_ranks for leg in legs]}: {difference:.2e}")
    assert difference <= 1e-5
    assert consumed(tmp_path) == consumed(folder) == [(t, i) for t in range(20) for i in range(16)]


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_deterministic_mode_gives_the_same_bits_in_every_world(tmp_path: Path, method: str) -> None:
    config = tiny_config(num_steps=20, deterministic=True, **METHODS[method])
    alone = train_legs(config, tmp_path / "alone", [Leg(1, 20)])
    for number, (legs, parallel) in enumerate(product(WORLDS.values(), ["ddp", "fsdp"])):
        ended = train_legs(config, tmp_path / f"{number}", [replace(leg, parallel=parallel) for leg in legs])
        assert [name for name, value in alone.items() if not torch.equal(value, ended[name])] == []
