"""Distillation: a frozen teacher of another patch size and width, in any world and after any restart."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.models.arch import create_vit, import_timm
from eosin.models.backbone import build_backbone
from eosin.models.export import export_teacher
from eosin.models.frozen_teacher import frozen_teacher, resample_grid, untrained_teacher
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.training.check import check_training
from eosin.training.checkpoints.checkpoint import load_part, save_checkpoint
from eosin.training.checkpoints.state import copy_state
from eosin.training.loop import ReachedStep, Trainer
from eosin.training.world import World
from tests.support.hub import hub
from tests.support.ranks import Leg, norm_difference, train_legs
from tests.support.training_run import ArraySource, begin, tiny_config

WIDE = {"arch_args": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}}


def exported(folder: Path, seed: int = 0, **augment: Any) -> str:
    """The folder of a teacher of 48 features and patches of 8 px; the student has 32 and 4."""
    config = tiny_config(model=WIDE)
    config = config.model_copy(update={"augment": config.augment.model_copy(update=augment)})
    torch.manual_seed(seed)
    backbone = build_backbone(config.model, config.augment.global_px)
    export_teacher(open_store(str(folder)), "big", backbone, config=config, step=1)
    return str(folder / "teachers" / "big")


def distilling(teacher: str, num_steps: int = 8, **train: Any) -> RunConfig:
    distill = {"teacher": teacher, **train.pop("distill", {})}
    return tiny_config(num_steps=num_steps, distill=distill, **train)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return exported(tmp_path_factory.mktemp("big"), mean=(0.7, 0.6, 0.7), std=(0.2, 0.3, 0.2))


def test_the_teacher_sees_images_as_it_was_trained_to_and_answers_on_the_students_grid(teacher: str) -> None:
    config = distilling(teacher)
    assert config.train.distill is not None
    frozen = frozen_teacher(config.train.distill, config.augment, untrained_teacher(teacher), 4)
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.7, 0.6, 0.7]), torch.tensor([0.2, 0.3, 0.2])
    wanted = frozen.vit.forward_features((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    tokens = frozen((pixels - 0.5) / 0.5)
    assert tokens.shape == (2, 1 + 4 * 4, 48)
    torch.testing.assert_close(tokens[:, 0], wanted[:, 0], rtol=1e-5, atol=1e-5)
    # Two patches a side became four: what is constant stays, and the mean of what is not.
    maps = tokens[:, 1:].unflatten(1, (4, 4)).mean((1, 2))
    torch.testing.assert_close(maps, wanted[:, 1:].mean(1), rtol=1e-4, atol=1e-4)
    flat = torch.ones(1, 9, 5) * torch.arange(5)
    torch.testing.assert_close(resample_grid(flat, 7), torch.ones(1, 49, 5) * torch.arange(5))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_any_world_distils_alike(teacher: str, tmp_path: Path, parallel: str) -> None:
    config = distilling(teacher, koleo={"weight": 0.0})
    alone = train_legs(config, tmp_path / "1", [Leg(1, 8)])
    legs = [Leg(2, 3, parallel), Leg(3, 8, parallel)]
    assert norm_difference(train_legs(config, tmp_path / "n", legs), alone) <= 1e-5


def test_an_interrupted_distillation_ends_with_the_same_bits(teacher: str, tmp_path: Path) -> None:
    config = distilling(teacher, distill={"hide_patches": True})
    whole = train_legs(config, tmp_path / "whole", [Leg(1, 8)])
    halves = train_legs(config, tmp_path / "halves", [Leg(1, 3), Leg(1, 8)])
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_every_method_at_once_runs_in_shards_and_in_bf16(teacher: str, tmp_path: Path) -> None:
    together = {
        "ibot": {"weight": 0.0},
        "jepa": {"weight": 1.0, "predictor_depth": 1},
        "gram": {"weight": 1.0, "px_multiplier": 2, "refresh_every_steps": 2},
        "paka": {"weight": 1.0, "hidden_dim": 16, "out_dim": 8},
    }
    config = distilling(teacher, num_steps=6, precision="bf16", **together)
    ended = train_legs(config, tmp_path / "2", [Leg(2, 3, "fsdp"), Leg(1, 6)])
    assert all(value.isfinite().all() for value in ended.values())
    alone = train_legs(config, tmp_path / "1", [Leg(1, 6)])
    assert norm_difference(ended, alone) < 2e-3  # bf16 rounds; in float32 the methods differ by 1e-7


def test_another_teacher_in_the_same_place_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "a")
    config = distilling(folder)
    train_legs(config, tmp_path / "run", [Leg(1, 2)])
    other = exported(tmp_path / "b", seed=1)
    for name in ("model.safetensors", "model.json"):
        Path(folder, name).write_bytes(Path(other, name).read_bytes())
    trainer = Trainer(config, World(8), RunLog("test"))
    with pytest.raises(UserError, match="not what this training began with"):
        trainer.resume(open_store(str(tmp_path / "run")))


def finished_run(folder: Path, **model: Any) -> str:
    """A run of a wider network with a checkpoint after two steps."""
    config = begin(str(folder), tiny_config(num_steps=6, model={**WIDE, **model}))
    trainer = Trainer(config, World(8), RunLog("test"))
    outcome = trainer.run(ArraySource(), ReachedStep(0, None), None, str, until=2)
    save_checkpoint(open_store(str(folder)), copy_state(trainer.learner, 2, outcome.loss), config.digest())
    return f"run:{folder}"


def test_the_heads_of_a_run_are_taken_and_stay(tmp_path: Path) -> None:
    name = finished_run(tmp_path / "big")
    big = {key: value for key, value in _teacher_of(tmp_path / "big", 2).items() if "head" in key}
    config = begin(str(tmp_path / "small"), distilling(name))
    trainer = Trainer(config, World(8), RunLog("test"))
    learner = trainer.learner
    before = {key: value.clone() for key, value in learner.teacher.state_dict().items()}
    trainer.run(ArraySource(), ReachedStep(0, None), None, str, until=4)
    after, student = learner.teacher.state_dict(), learner.student.state_dict()
    assert all(torch.equal(after[key], big[key]) for key in big)
    assert any(not torch.equal(student[key], big[key]) for key in big)
    moved = [key for key in after if not torch.equal(after[key], before[key])]
    assert any(key.startswith("backbone.") for key in moved) and any("adapter" in key for key in moved)


def _teacher_of(folder: Path, step: int) -> dict[str, Tensor]:
    from eosin.runs import load_run

    return load_part(open_store(str(folder)), step, "teacher", load_run(str(folder)).digests())


def test_heads_of_another_shape_are_refused(tmp_path: Path) -> None:
    head = {"num_prototypes": 48, "hidden_dim": 32, "bottleneck_dim": 16}
    config = distilling(finished_run(tmp_path, dino_head=head))
    with pytest.raises(UserError, match=r"its heads are not of the shape.*weight_g"):
        Trainer(config, World(8), RunLog("test"))


def test_weights_of_timms_layout_need_no_card(tmp_path: Path) -> None:
    vit = create_vit("vit_tiny_patch16_224", {"img_size": 224, "dynamic_img_size": True})
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    config = distilling(f"timm:vit_tiny_patch16_224@{tmp_path}/w.safetensors")
    trainer = Trainer(config, World(8), RunLog("test"))
    frozen = trainer.learner.frozen
    assert frozen is not None and torch.equal(frozen.vit.cls_token, vit.cls_token)
    result = trainer.learner.step(0, trainer._microbatches(0, next(ArraySource().batches([(0, range(16))]))))
    assert result.loss > 0 and result.terms["ibot"] > 0


HUB = """
import sys
from eosin.errors import EosinError
from eosin.observability import RunLog
from eosin.training.loop import Trainer
from eosin.training.world import World
from tests.support.training_run import tiny_config
try:
    distill = {"teacher": sys.argv[1], "teacher_px": 32}
    trainer = Trainer(tiny_config(distill=distill), World(8), RunLog("test"))
    frozen = trainer.learner.frozen
    print(float(frozen.vit.cls_token.sum()), frozen.scale.flatten().tolist())
except EosinError as error:
    print(type(error).__name__, error)
"""


def test_a_teacher_of_the_hub_is_taken_with_its_normalisation(tmp_path: Path) -> None:
    vit = import_timm().create_model("test_vit", num_classes=0)
    with hub(tmp_path / "hub", {"owner/big": vit}) as endpoint:
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}

        def said(name: str) -> str:
            command = [sys.executable, "-c", HUB, name]
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280).stdout

        total, _, scale = said("timm:hf-hub:owner/big").partition(" ")
        assert float(total) == pytest.approx(float(vit.cls_token.detach().sum()), rel=1e-6)
        std = import_timm().data.resolve_model_data_config(vit)["std"]
        assert json.loads(scale) == pytest.approx([0.5 / value for value in std], rel=1e-6)
        refused = said("hf-hub:owner/other")
        assert refused.startswith("UserError") and "not on the hub" in refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_smal_patch16_224", "has no model"),
        ("timm:resnet18", "no ViT with a class token"),
        ("/nowhere/teachers/x", "model.json is not there"),
        ("run:/nowhere", "/nowhere"),
    ],
)
def test_a_teacher_that_is_not_there_is_named_before_anything_starts(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_training(distilling(name))


def test_crops_that_are_no_whole_number_of_the_teachers_patches_are_refused(teacher: str) -> None:
    config = distilling(teacher, distill={"teacher_px": 20})
    with pytest.raises(UserError, match=r"teacher_px 20 is not a multiple.* 8"):
        check_training(config)
    check_training(distilling(teacher, distill={"teacher_px": 24}))


def test_the_memory_of_a_teacher_counts(teacher: str) -> None:
    plain, config = check_training(tiny_config()), distilling(teacher)
    with_teacher = check_training(config)
    size = sum(p.numel() for p in untrained_teacher(teacher).vit.parameters())
    assert with_teacher["distill_parameters"] == size and "distill_parameters" not in plain
    with pytest.raises(UserError, match="frozen"):
        check_training(config, memory_bytes=1000)
    larger = check_training(distilling(teacher, distill={"teacher_px": 64}))
    assert larger["gflop_per_image"] > 2 * with_teacher["gflop_per_image"]


def test_the_configuration_names_its_teacher() -> None:
    with pytest.raises(ValueError, match="teacher"):
        RunConfig.model_validate(json.loads('{"train": {"distill": {}}}'))
