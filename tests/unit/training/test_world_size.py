"""The number of ranks changes speed, never the trajectory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eosin.training.world import World, share_of
from tests.support.ranks import Leg, norm_difference, train_legs
from tests.support.training_run import tiny_config

DINO = {"method": "dino", "num_slots": 4}
SEPARATE_HEADS = tiny_config(
    num_steps=20, model={"ibot_head": {"num_prototypes": 48, "hidden_dim": 32, "bottleneck_dim": 16}}
)


def consumed(folder: Path) -> list[tuple[int, int]]:
    """(step, sample index) of everything that was read, sorted."""
    lines = [line for path in folder.glob("consumed-*.jsonl") for line in path.read_text().splitlines()]
    return sorted((step, index) for step, indices in map(json.loads, lines) for index in indices)


@pytest.mark.parametrize(
    ("world_size", "shares"), [(1, [8]), (3, [3, 3, 2]), (8, [1] * 8), (10, [1] * 8 + [0, 0])]
)
def test_shares_cover_every_slot_once(world_size: int, shares: list[int]) -> None:
    owned = [share_of(rank, world_size, 8) for rank in range(world_size)]
    assert [len(share) for share in owned] == shares
    assert [slot for share in owned for slot in share] == list(range(8))


def test_sums_in_slot_order_do_not_depend_on_how_slots_are_held() -> None:
    parts = {
        slot: torch.randn(50, generator=torch.Generator().manual_seed(slot)) * 1e4**slot for slot in range(4)
    }
    ordered = World(4, deterministic=True).sum_over_slots(dict(reversed(parts.items())), parts[0])
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


def test_uneven_shares_and_restarts_in_between_end_where_one_rank_does(
    tmp_path: Path, alone: tuple[Path, dict[str, Tensor]]
) -> None:
    changing = train_legs(SEPARATE_HEADS, tmp_path, [Leg(1, 6), Leg(3, 13), Leg(2, 20)])
    assert norm_difference(changing, alone[1]) <= 1e-5
    assert consumed(tmp_path) == consumed(alone[0])


def test_dino_with_centring_ends_alike_in_two_ranks(tmp_path: Path) -> None:
    config = tiny_config(num_steps=8, **DINO)
    one = train_legs(config, tmp_path / "1", [Leg(1, 8)])
    two = train_legs(config, tmp_path / "2", [Leg(2, 8)])
    assert norm_difference(two, one) <= 1e-5


def test_deterministic_mode_gives_the_same_bits_at_any_world_size(tmp_path: Path) -> None:
    config = tiny_config(num_steps=6, deterministic=True)
    alone = train_legs(config, tmp_path / "1", [Leg(1, 6)])
    uneven = train_legs(config, tmp_path / "3", [Leg(3, 6)])
    assert alone.keys() == uneven.keys()
    assert all(torch.equal(alone[name], uneven[name]) for name in alone)


@pytest.mark.long
@pytest.mark.parametrize(
    "train", [{}, DINO, {"deterministic": True}], ids=["dinov2", "dino", "deterministic"]
)
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_every_world_size_ends_where_one_rank_does(
    tmp_path: Path, num_ranks: int, train: dict[str, object]
) -> None:
    config = tiny_config(num_steps=20, **train)
    alone = train_legs(config, tmp_path / "1", [Leg(1, 20)])
    shared = train_legs(config, tmp_path / "n", [Leg(num_ranks, 20)])
    assert norm_difference(shared, alone) <= (0 if train.get("deterministic") else 1e-5)
    assert consumed(tmp_path / "n") == consumed(tmp_path / "1")
