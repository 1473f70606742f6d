"""Teachers leave as plain timm models and come back unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eosin.config import RunConfig
from eosin.errors import PermanentError, UserError
from eosin.layout import RunLayout
from eosin.models.arch import import_timm
from eosin.models.export import export_teacher, load_teacher, random_init
from eosin.models.network import build_network
from eosin.storage import open_store
from eosin.training.engine.step import Learner
from eosin.training.world import World
from tests.support.training_run import tiny_config

NAME = "step-00000003"
PLAIN = tiny_config()
REGISTERS = tiny_config(
    model={
        "arch": "vit_small_patch14_reg4_dinov2",
        "arch_args": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    }
)
SWIGLU = tiny_config(
    model={
        "arch": "vit_giant_patch14_reg4_dinov2",
        "arch_args": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    }
)


NO_LAYER_SCALE = tiny_config(model={"layer_scale": None})
GIANT = tiny_config(
    model={
        "arch": "vit_giant_patch14_dinov2",
        "arch_args": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    }
)
FAMILIES = {
    "plain": PLAIN,
    "no layer scale": NO_LAYER_SCALE,
    "registers": REGISTERS,
    "swiglu": GIANT,
    "swiglu and registers": SWIGLU,
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def config(request: pytest.FixtureRequest) -> RunConfig:
    return request.param  # type: ignore[no-any-return]


def images(side_px: int) -> torch.Tensor:
    return torch.randn(3, 3, side_px, side_px, generator=torch.Generator().manual_seed(side_px))


def test_plain_timm_loads_an_export_in_three_lines_with_equal_features(
    config: RunConfig, tmp_path: Path
) -> None:
    backbone = build_network(config).backbone.eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    export_teacher(open_store(str(tmp_path)), NAME, backbone, config=config, step=3)
    folder = tmp_path / RunLayout.teacher(NAME)
    timm = import_timm()

    card = json.loads((folder / "model.json").read_text())
    model = timm.create_model(card["arch"], num_classes=0, **card["arch_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"))

    model.eval()
    with torch.no_grad():
        for side_px in (16, 8, 24):
            ours = backbone(images(side_px))[:, 0]
            assert torch.allclose(model(images(side_px)), ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inside", ["", RunLayout.teacher(NAME)])
def test_load_teacher_from_a_run_or_its_own_folder(tmp_path: Path, inside: str) -> None:
    backbone = build_network(PLAIN).backbone.eval()
    card = export_teacher(open_store(str(tmp_path)), NAME, backbone, config=PLAIN, step=3, snapshot_id="s")
    model, loaded = load_teacher(str(tmp_path / inside), NAME)
    assert loaded == card and loaded.config_digest == PLAIN.digest() and loaded.mpp == (0.5,)
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    with torch.no_grad():
        assert torch.equal(model(images(16)), backbone(images(16))[:, 0])
        assert model(images(16)).shape == (3, loaded.num_features)


def test_an_export_that_is_whole_is_left_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    first = export_teacher(store, NAME, build_network(PLAIN).backbone, config=PLAIN, step=3)
    other = build_network(PLAIN.model_copy(update={"seed": 6})).backbone
    assert export_teacher(store, NAME, other, config=PLAIN, step=3) == first
    load_teacher(str(tmp_path), NAME)


def test_the_card_is_published_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    put: list[str] = []
    original = type(store).put

    def spy(self: Any, key: str, data: bytes, **options: Any) -> Any:
        put.append(key)
        return original(self, key, data, **options)

    monkeypatch.setattr(type(store), "put", spy)
    export_teacher(store, NAME, build_network(PLAIN).backbone, config=PLAIN, step=3)
    assert put == [RunLayout.teacher_weights(NAME), RunLayout.teacher_card(NAME)]


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher step-00000003"):
        load_teacher(str(tmp_path), NAME)


def test_weights_that_are_not_the_cards(tmp_path: Path) -> None:
    export_teacher(open_store(str(tmp_path)), NAME, build_network(PLAIN).backbone, config=PLAIN, step=3)
    weights = tmp_path / RunLayout.teacher_weights(NAME)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PermanentError, match="SHA-256 differs"):
        load_teacher(str(tmp_path), NAME)
    weights.unlink()
    with pytest.raises(PermanentError, match="is missing"):
        load_teacher(str(tmp_path), NAME)


def test_random_init_is_what_training_starts_from(config: RunConfig) -> None:
    model, card = random_init(config)
    learner = Learner(config, build_network(config), World(config.train.num_slots))
    start = learner.student.backbone.vit.state_dict()
    assert card.step == 0 and card.name == "random-init"
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    other, _ = random_init(config.model_copy(update={"seed": config.seed + 1}))
    assert not torch.equal(other.state_dict()["pos_embed"], start["pos_embed"])


def test_building_a_network_leaves_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build_network(PLAIN)
    assert torch.equal(before, torch.random.get_rng_state())
