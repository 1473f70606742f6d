"""Going on from another run at another crop size: student, teacher and heads, every tensor accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.training.checkpoints.checkpoint import save_checkpoint
from eosin.training.checkpoints.state import copy_state
from eosin.training.loop import ReachedStep, Trainer
from eosin.training.world import World
from tests.support.training_run import ArraySource, begin, tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trainer]:
    """A run of four steps, with its checkpoint."""
    uri = str(tmp_path_factory.mktemp("finished"))
    config = begin(uri, tiny_config(num_steps=6))
    trainer = Trainer(config, World(config.train.num_microbatches), RunLog("test"))
    outcome = trainer.run(ArraySource(), ReachedStep(0, None), None, str, until=4)
    save_checkpoint(open_store(uri), copy_state(trainer.learner, 4, outcome.loss), config.digest())
    return uri, trainer


def post_training(uri: str, **model: Any) -> RunConfig:
    """The same network at 24 px in place of 16."""
    config = tiny_config(model={**model, "init": f"run:{uri}"})
    return config.model_copy(update={"augment": config.augment.model_copy(update={"global_px": 24})})


def started(config: RunConfig, folder: Path) -> tuple[Trainer, list[dict[str, Any]]]:
    store = open_store(str(folder))
    with RunLog("train", store) as log:
        trainer = Trainer(config, World(config.train.num_microbatches), log)
    keys = [info.key for info in store.list(RunLayout.LOGS)]
    events = [json.loads(line) for key in keys for line in store.get(key).decode().splitlines()]
    return trainer, [event for event in events if event["event"] == "init"]


def test_student_teacher_and_heads_go_on_with_resampled_positions(
    finished: tuple[str, Trainer], tmp_path: Path
) -> None:
    uri, before = finished
    trainer, reports = started(post_training(uri), tmp_path)
    for which in ("student", "teacher"):
        old = getattr(before.learner, which).state_dict()
        new = getattr(trainer.learner, which).state_dict()
        changed = {
            name
            for name in old
            if not torch.equal(old[name], new[name])
            if old[name].shape == new[name].shape
        }
        resized = {name for name in old if old[name].shape != new[name].shape}
        assert resized == {"backbone.vit.pos_embed"} and not changed
        assert new["backbone.vit.pos_embed"].shape == (1, 1 + 6 * 6, 32)
    student, teacher = trainer.learner.student.state_dict(), trainer.learner.teacher.state_dict()
    assert any(not torch.equal(student[name], teacher[name]) for name in student), (
        "two networks, not one twice"
    )
    assert len(reports) == 2 and all(report["interpolated"] == ["pos_embed"] for report in reports)
    assert reports[0]["heads"] == {"dino_head": "loaded"} and not reports[0]["missing"]
    assert trainer.run(ArraySource(), ReachedStep(0, None), None, str, until=2).step == 2


def test_old_crops_give_the_old_features(finished: tuple[str, Trainer], tmp_path: Path) -> None:
    """Positions are resampled to 24 px and, for a crop of 16 px, back: nearly what they were."""
    uri, before = finished
    trainer, _ = started(post_training(uri), tmp_path)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        new, old = (t.learner.teacher.backbone(images)[:, 0] for t in (trainer, before))
    assert torch.nn.functional.cosine_similarity(new, old).min() > 0.98


def test_a_head_of_another_shape_is_named_and_drawn_anew(
    finished: tuple[str, Trainer], tmp_path: Path
) -> None:
    head = {"num_prototypes": 48, "hidden_dim": 32, "bottleneck_dim": 16}
    config = post_training(finished[0], dino_head=head, ibot_head=head)
    _, reports = started(config, tmp_path)
    assert reports[0]["heads"] == {
        "dino_head": "of another shape: as randomly drawn", "ibot_head": "missing: as randomly drawn",
    }  # fmt: skip


def test_nothing_to_start_from_is_said(tmp_path: Path, finished: tuple[str, Trainer]) -> None:
    with pytest.raises(UserError, match="no run at"):
        started(post_training(str(tmp_path / "nowhere")), tmp_path / "log")
    begin(str(tmp_path / "empty"), tiny_config())
    with pytest.raises(UserError, match="has no checkpoint"):
        started(post_training(str(tmp_path / "empty")), tmp_path / "log")
    wider = post_training(
        finished[0], arch_args={"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2}
    )
    with pytest.raises(UserError, match=r"do not fit model\.arch"):
        started(wider, tmp_path / "log")


def test_a_damaged_checkpoint_is_passed_over(finished: tuple[str, Trainer], tmp_path: Path) -> None:
    _, before = finished
    config = begin(str(tmp_path / "run"), tiny_config(num_steps=6))
    store = open_store(str(tmp_path / "run"))
    for step in (3, 5):
        save_checkpoint(store, copy_state(before.learner, step, 1.0), config.digest())
    newest = next(info.key for info in store.list("checkpoints/step-00000005") if "safetensors" in info.key)
    (tmp_path / "run" / newest).write_bytes(b"torn")
    _, reports = started(post_training(str(tmp_path / "run")), tmp_path / "log")
    assert "student of step 3" in reports[0]["source"]
