"""What cannot be trained is refused with the arithmetic; the rest is planned."""

from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig, load_config, with_overrides
from eosin.errors import UserError
from eosin.models.network import build_network
from eosin.training.check import check_training, device_memory, warm_start_advice
from eosin.training.checkpoints.state import flatten, live_parts
from eosin.training.engine.parallel import local
from eosin.training.engine.step import Learner
from eosin.training.world import World
from tests.support.training_run import tiny_config

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


def config(**sections: dict[str, Any]) -> RunConfig:
    tree = tiny_config().model_dump()
    for section, values in sections.items():
        tree[section] |= values
    return RunConfig.model_validate(tree)


def test_tcga_trains_as_vits16_dinov2_does() -> None:
    twins = [load_config(path.read_text()) for path in RECIPES if path.stem in ("tcga", "vits16-dinov2")]
    trees = [twin.model_dump(exclude={"recipe", "description", "slides", "index"}) for twin in twins]
    assert len(trees) == 2 and trees[0] == trees[1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_start_trained_weights_at_rates_for_them(path: Path) -> None:
    recipe = load_config(path.read_text(), source=path.name)
    assert warm_start_advice(recipe) == ""
    scratch = with_overrides(recipe, ["train.optimizer.lr=4e-3", "model.init=random"])
    assert warm_start_advice(scratch) == ""
    warm = with_overrides(recipe, ["train.optimizer.lr=2e-3", "model.init=timm:vit_small_patch16_224.dino"])
    assert "0.002 is a rate for random weights" in warm_start_advice(warm)


def test_planned_figures_of_a_known_model() -> None:
    figures = check_training(
        RunConfig.model_validate(
            {
                "model": {"arch": "vit_small_patch16_224"},
                "train": {"batch_size": 64, "num_microbatches": 4, "num_steps": 20_000},
            }
        )
    )
    # ViT-S/16 at 224 px: 21.67 M, and LayerScale's 2 × 12 × 384 and our mask token.
    assert figures["backbone_parameters"] == 21_665_664 + 2 * 12 * 384 + 384
    assert (
        figures["head_parameters"] == 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 65536 * 257
    )
    assert figures["patches"] == 64 * 20_000
    # Student thrice, teacher once, 2 × 224 and 8 × 96: 124 GFLOP an image, heads included.
    assert figures["gflop_per_image"] == pytest.approx(124, rel=0.01)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"augment": {"global_px": 18}}, r"global_px 18 is not a multiple .* 18 = 4 × 4 \+ 2"),
        ({"augment": {"local_px": 10}}, r"local_px 10 is not a multiple .* 10 = 2 × 4 \+ 2"),
        ({"model": {"arch": "vit_smal_patch16_224"}}, "has no model 'vit_smal_patch16_224'"),
        ({"model": {"arch_args": {"widht": 3}}}, "unexpected keyword argument 'widht'"),
        (
            {"model": {"arch": "vit_small_patch16_224.augreg_in21k", "arch_args": {}}},
            "names pretrained weights",
        ),
        ({"model": {"arch": "resnet50", "arch_args": {}}}, "cannot build resnet50"),
        ({"model": {"arch": "vit_medium_patch16_gap_240", "arch_args": {}}}, "class token"),
        *(
            ({"model": {"arch_args": {"patch_size": 4, "embed_dim": 32, "num_heads": 2, **args}}}, words)
            for args, words in [
                ({"depth": 0}, "has no blocks"),
                ({"embed_dim": 0}, "timm cannot build"),
                ({"num_heads": 0}, "timm cannot build"),
                ({"num_heads": -1}, "fewer than one attention head"),
                ({"patch_size": 0}, "timm cannot build"),
                ({"patch_size": [4, 8]}, "other patches than squares"),
                ({"in_chans": 1}, "other patches than squares"),
                ({"patch_drop_rate": 0.1}, "patch dropout"),
                ({"global_pool": "avg"}, "has its norm after pooling"),
                ({"checkpoint_path": "/nowhere"}, "timm cannot build"),
            ]
        ),
    ],
)
def test_impossible_networks(sections: dict[str, Any], message: str) -> None:
    tree = tiny_config().model_dump()
    for section, values in sections.items():
        tree[section] |= values
    with pytest.raises((UserError, ValueError), match=message):
        check_training(RunConfig.model_validate(tree))


def test_a_size_of_local_crops_that_are_not_made_does_not_matter() -> None:
    config = tiny_config()
    check_training(
        config.model_copy(
            update={"augment": config.augment.model_copy(update={"num_local": 0, "local_px": 15})}
        )
    )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 8}, r"batch_size 8 ÷ num_microbatches 8 = 1"),
        (
            {"elastic": {"max_nodes": 3, "workers_per_node": 4}},
            r"12 workers \(3 nodes × 4\) for 8 microbatches: 4 would",
        ),
        ({"optimizer": {"warmup_steps": 20}}, r"warmup_steps 20 is not below train.num_steps 20"),
        ({"ibot": {"mask_ratio": (0.0, 0.01)}}, "masks nothing"),
        ({"gram": {"weight": 1, "start_step": 5, "warmup_steps": 16}}, r"5 \+ warmup_steps 16 are more than"),
    ],
)
def test_impossible_training(train: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_training(tiny_config(**train))


def test_more_prototypes_than_memory() -> None:
    huge = tiny_config(model={"dino_head": {"num_prototypes": 10**8, "bottleneck_dim": 16, "hidden_dim": 32}})
    assert check_training(huge)["state_gib"] > 30
    with pytest.raises(
        UserError, match=r"1700\.0 M parameters × 5 float32 copies .* = 31\.7 GiB a rank, and there are 16\.0"
    ):
        check_training(huge, memory_bytes=16 * 2**30)


def learner_bytes(learner: Learner) -> int:
    state = [value for name, value in flatten(live_parts(learner)).items() if not name.startswith("loss/")]
    gradients = [p.grad for p in learner.student.parameters() if p.grad is not None]
    return sum(local(value).nbytes for value in [*state, *gradients])


def test_the_copies_that_are_counted_are_those_that_are_held() -> None:
    learner = Learner(tiny_config(), build_network(tiny_config()), World(8))
    expected = device_memory(tiny_config(), build_network(tiny_config(), meta=True), 1)
    assert learner_bytes(learner) == expected.state_bytes == expected.certain_bytes


def test_what_does_not_fit_whole_is_told_over_how_many_ranks_shards_would_fit() -> None:
    wide = config(model={"arch": "vit_giant_patch14_reg4_dinov2", "arch_args": {}, "drop_path": 0.0},
                  augment={"global_px": 224, "local_px": 98}, patches={"patch_px": 512})  # fmt: skip
    with pytest.raises(
        UserError, match=r"M parameters × 5 float32 copies .* and there are 16\.0 GiB"
    ) as raised:
        check_training(wide, memory_bytes=16 * 2**30)
    assert "train.parallel=fsdp over 2 ranks or more needs" in raised.value.hint
    sharded = wide.model_copy(update={"train": wide.train.model_copy(update={"parallel": "fsdp"})})
    assert check_training(sharded, memory_bytes=16 * 2**30, num_ranks=2)["state_gib"] < 16
    with pytest.raises(UserError, match=r"÷ 2 ranks \+ .* GiB gathered"):
        check_training(sharded, memory_bytes=8 * 2**30, num_ranks=2)


def test_deterministic_mode_counts_a_gradient_a_microbatch() -> None:
    network = build_network(tiny_config(), meta=True)
    plain = device_memory(tiny_config(), network, 3)
    kept = device_memory(tiny_config(deterministic=True), network, 3)
    # Three of the eight microbatches, four bytes a parameter each.
    assert kept.certain_bytes - plain.certain_bytes == 3 * 4 * plain.parameters
