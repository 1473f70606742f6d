"""FSDP2 in several gloo processes: the reference's step, and a state that moves between worlds."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from eosin.config import RunConfig
from eosin.config.train import KoLeoConfig, OptimizerConfig
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.training.checkpoints.state import (
    Parts,
    copy_state,
    flatten,
    hand_out,
    live_parts,
    put_rows,
    row_block,
    set_step,
)
from eosin.training.engine.microbatch import Microbatch, batch_indices
from eosin.training.engine.parallel import local, whole
from eosin.training.engine.step import Learner, NonFinite
from eosin.training.loop import Trainer
from eosin.training.world import World
from tests.support import golden
from tests.support.ranks import in_ranks
from tests.support.training_run import ArraySource, tiny_config

STEPS = ["sinkhorn_separate_heads", "centering_shared_head_registers"]


def golden_config(name: str, num_microbatches: int, parallel: str) -> RunConfig:
    """One step as the reference took it: no KoLeo where the batch is cut, since that is per microbatch."""
    config = golden.step_config(name, num_microbatches)
    dino = config.train.dino.model_copy(
        update={"teacher_temperature_warmup": 0.05, "teacher_temperature": 0.05}
    )
    update = {"optimizer": OptimizerConfig(clip_grad_norm=None), "dino": dino, "parallel": parallel}
    koleo = {} if num_microbatches == 1 else {"koleo": KoLeoConfig(weight=0.0)}
    return config.model_copy(update={"train": config.train.model_copy(update={**update, **koleo})})


def golden_step(name: str, config: RunConfig, world: World) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss terms and whole gradients of the reference's batch."""
    tensors = golden.tensors(f"step_{name}")
    learner = Learner(config, golden.network(config, tensors, "student"), world)
    teacher = golden.network(config, tensors, "teacher").state_dict()
    with torch.no_grad():
        for key, value in learner.teacher.state_dict().items():
            put_rows(learner, value, teacher[key], 0)
    cut = golden.microbatches(tensors, config.train.num_microbatches)
    result = learner.step(0, {microbatch: cut[microbatch] for microbatch in world.own_microbatches})
    gradients = {
        n: whole(p.grad).clone() for n, p in learner.student.named_parameters() if p.grad is not None
    }
    return result.terms, gradients


def compare_with_golden(rank: int, num_ranks: int, name: str, num_microbatches: int) -> None:
    alone = World(num_microbatches)
    _, expected = golden_step(name, golden_config(name, num_microbatches, "ddp"), alone)
    terms, ours = golden_step(
        name, golden_config(name, num_microbatches, "fsdp"), World(num_microbatches, rank, num_ranks)
    )
    reference = golden.VALUES["steps"][name]
    assert terms["dino_local"] == pytest.approx(reference["dino_local_crops_loss"], rel=1e-5)
    assert terms["dino_global"] == pytest.approx(reference["dino_global_crops_loss"], rel=1e-5)
    assert terms["ibot"] == pytest.approx(2 * reference["ibot_loss"], rel=1e-5)
    assert ours.keys() == expected.keys()
    mine = torch.cat([ours[key].flatten() for key in expected])
    assert golden.relative_error(mine, torch.cat([g.flatten() for g in expected.values()])) < 1e-5


@pytest.mark.parametrize(("num_ranks", "name"), [(2, STEPS[1]), (3, STEPS[0])])
def test_a_sharded_step_is_the_references(num_ranks: int, name: str) -> None:
    """Three microbatches two ranks have uneven shares. The single process is compared in test_parity_step."""
    in_ranks(compare_with_golden, num_ranks, name, 3)


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(2, 2), (2, 3), (3, 3), (3, 6), (4, 6)])
def test_a_sharded_step_is_the_references_at_every_cut(
    name: str, num_ranks: int, num_microbatches: int
) -> None:
    in_ranks(compare_with_golden, num_ranks, name, num_microbatches)


@pytest.mark.parametrize(("num_rows", "num_pieces"), [(1, 3), (5, 3), (7, 4), (8, 2), (9, 8)])
def test_blocks_of_rows_are_torchs_chunks(num_rows: int, num_pieces: int) -> None:
    chunks = [len(chunk) for chunk in torch.arange(num_rows).chunk(num_pieces)]
    blocks = [row_block(num_rows, index, num_pieces) for index in range(num_pieces)]
    assert [len(block) for block in blocks if block] == chunks
    assert [row for block in blocks for row in block] == list(range(num_rows))


def sharded_learner(config: RunConfig, world: World) -> Learner:
    learner = Learner(config, build_network(config), world)
    set_step(learner, 7)
    for seed, value in enumerate(flatten(live_parts(learner)).values()):
        generator = torch.Generator().manual_seed(seed)
        known = torch.randn(value.shape, generator=generator)
        with torch.no_grad():
            held = value.to_local() if isinstance(value, DTensor) else value
            held.copy_(known[own_rows(value, world)])
    return learner


def own_rows(value: Tensor, world: World) -> slice:
    if not isinstance(value, DTensor):
        return slice(None)
    block = row_block(value.shape[0], world.rank, world.size)
    return slice(block.start, block.stop)


def piece_of(live: Parts, expected: dict[str, Tensor], index: int, num_pieces: int) -> Parts:
    """What a world of `num_pieces` ranks would have kept on rank `index`."""

    def cut(part: str, name: str) -> Tensor:
        known = expected[f"{part}/{name}"]
        block = row_block(known.shape[0], index, num_pieces)
        return known if part == "loss" else known[block.start : block.stop]

    return {part: {name: cut(part, name) for name in tensors} for part, tensors in live.items()}


def move_pieces(rank: int, num_ranks: int) -> None:
    """Three pieces of an earlier world, two on the last rank and one on the first, go to two ranks."""
    config = tiny_config(parallel="fsdp")
    world = World(config.train.num_microbatches, rank, num_ranks)
    learner = sharded_learner(config, world)
    expected = {name: whole(value).clone() for name, value in flatten(live_parts(learner)).items()}
    pieces = [piece_of(live_parts(learner), expected, index, 3) for index in range(3)]
    with torch.no_grad():
        for value in flatten(live_parts(learner)).values():
            value.zero_()
    holders = [num_ranks - 1, 0, num_ranks - 1]
    held = {index: pieces[index] for index in range(3) if holders[index] == rank}
    assert hand_out(learner, 7, held, holders) == 7
    for name, value in flatten(live_parts(learner)).items():
        assert torch.equal(whole(value), expected[name]), name


def test_pieces_in_memory_of_a_larger_world_go_to_a_smaller_one() -> None:
    in_ranks(move_pieces, 2)


def own_copy(value: Tensor) -> Tensor:
    """Of what this rank holds."""
    return local(value.detach()).clone()


def copies_are_of_ones_own_rows(rank: int, num_ranks: int, folder: Path) -> None:
    config = tiny_config(parallel="fsdp")
    learner = sharded_learner(config, World(config.train.num_microbatches, rank, num_ranks))
    taken = copy_state(learner, 7, None)
    assert (taken.index, taken.num_pieces) == (rank, num_ranks)
    held = sum(t.numel() for part in ("student", "teacher", "optimizer") for t in taken.parts[part].values())
    live = live_parts(learner).items()
    everything = sum(t.numel() for part, tensors in live if part != "loss" for t in tensors.values())
    assert held < 0.6 * everything
    before = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in taken.parts.items()}
    gathered = {
        part: {name: own_copy(whole(value)) for name, value in tensors.items()}
        for part, tensors in live_parts(learner).items()
    }
    with torch.no_grad():
        for value in flatten(live_parts(learner)).values():
            value.zero_()
    hand_out(learner, 7, {} if rank else {0: gathered}, [0])
    again = copy_state(learner, 7, None)
    for part, tensors in before.items():
        assert all(torch.equal(again.parts[part][name], value) for name, value in tensors.items())


def test_a_snapshot_of_shards_is_this_ranks_rows_and_a_whole_state_fills_them(tmp_path: Path) -> None:
    in_ranks(copies_are_of_ones_own_rows, 2, tmp_path)


def lopsided(rank: int, num_ranks: int) -> None:
    """One rank has everything to do, the other nothing: it must still pass as often."""
    outcomes = []
    for shares in ((8, 0), (5, 3)):
        config = tiny_config(parallel="fsdp")
        world = World(8, rank, num_ranks, shares=list(shares))
        learner = Learner(config, build_network(config), world)
        microbatches = {
            microbatch: random_microbatch(config, microbatch) for microbatch in world.own_microbatches
        }
        result = learner.step(0, microbatches)
        outcomes.append((result.loss, result.grad_norms["backbone"]))
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-5)


def random_microbatch(config: RunConfig, seed: int) -> Microbatch:
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(n, 2, 3, px, px, generator=generator) for n, px in ((2, 16), (3, 8))]
    masks = torch.rand(4, 16, generator=generator) < 0.3
    return Microbatch(crops[0], crops[1], masks)


def test_a_rank_without_a_microbatch_keeps_the_others_company() -> None:
    in_ranks(lopsided, 2)


def poisoned(rank: int, num_ranks: int) -> None:
    config = tiny_config(parallel="fsdp")
    world = World(8, rank, num_ranks)
    learner = Learner(config, build_network(config), world)
    microbatches = {
        microbatch: random_microbatch(config, microbatch) for microbatch in world.own_microbatches
    }
    if 6 in microbatches:
        microbatches[6].global_crops.fill_(torch.inf)
    before = [own_copy(p) for p in learner.student.parameters()]
    with pytest.raises(NonFinite) as raised:
        learner.step(3, microbatches)
    assert (raised.value.step, raised.value.microbatches) == (3, (6,))
    assert all(torch.equal(own_copy(p), q) for p, q in zip(learner.student.parameters(), before, strict=True))
    dist.barrier()


def test_a_loss_that_is_not_finite_moves_no_shard_and_is_named_on_every_rank() -> None:
    in_ranks(poisoned, 3)


def compare_compiled(rank: int, num_ranks: int, checkpointing: bool, drop_path: float) -> None:
    """Traced, not lowered: the compiler proper is for tests/gpu."""
    import functools

    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    losses, ends = [], []
    for compiled in (False, True):
        config = tiny_config(
            parallel="fsdp", compile=compiled, activation_checkpointing=checkpointing,
            num_microbatches=3, batch_size=6, model={"drop_path": drop_path},
        )  # fmt: skip
        trainer = Trainer(config, World(3, rank, num_ranks), RunLog("compiled"))
        indices = batch_indices(trainer.world.own_microbatches, config.train.microbatch_size)
        batches = ArraySource().batches((step, indices) for step in range(2))
        losses.append([
            trainer.learner.step(step, trainer._microbatches(step, batch)).loss
            for step, batch in enumerate(batches)
        ])  # fmt: skip
        ends.append(torch.cat([whole(p.detach()).flatten() for p in trainer.learner.student.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert golden.relative_error(ends[1], ends[0]) < 1e-6
    # A graph a kind of pass, whatever the depth: as many as replicas compile.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 11


@pytest.mark.parametrize(("checkpointing", "drop_path"), [(False, 0.4), (True, 0.1)])
def test_compiled_blocks_of_shards_take_the_same_steps(checkpointing: bool, drop_path: float) -> None:
    """Blocks are gathered by hooks outside of what is compiled; uneven shares."""
    in_ranks(compare_compiled, 2, checkpointing, drop_path)


def clip_by_parameter(rank: int, num_ranks: int, deterministic: bool) -> None:
    """After two steps a shard's rows are those of the whole network of one process."""
    optimizer = {"clip_by": "parameter", "clip_grad_norm": 0.02}
    config = tiny_config(optimizer=optimizer, parallel="fsdp", deterministic=deterministic)
    ends = []
    for world in (World(8, deterministic=deterministic), World(8, rank, num_ranks, deterministic)):
        parallel = "ddp" if world.size == 1 else "fsdp"
        config = config.model_copy(update={"train": config.train.model_copy(update={"parallel": parallel})})
        learner = Learner(config, build_network(config), world)
        for step in range(2):
            learner.step(step + 3, {i: random_microbatch(config, i) for i in world.own_microbatches})
        ends.append(torch.cat([whole(p.detach()).flatten() for p in learner.student.parameters()]))
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 1e-6


@pytest.mark.parametrize("deterministic", [False, True])
def test_clipping_each_parameter_is_the_same_in_shards(deterministic: bool) -> None:
    in_ranks(clip_by_parameter, 2, deterministic)
