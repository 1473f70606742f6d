"""Teachers leave as plain timm models and come back unchanged."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from eosin.config import RunConfig
from eosin.errors import PermanentError, UserError
from eosin.evaluation.transform import fit
from eosin.layout import RunLayout
from eosin.models import arch
from eosin.models.arch import import_timm
from eosin.models.backbone import Backbone
from eosin.models.export import export_teacher, load_teacher, random_init
from eosin.models.network import build_network
from eosin.records import TeacherCard
from eosin.storage import open_store
from eosin.training.engine.step import Learner
from eosin.training.world import World
from tests.support.training_run import tiny_config

NAME = "step-00000003"
# Beside a CPU torch, PyPI's torchvision cannot be imported as it is (docs/troubleshooting.md).
MISSING_OPS = (
    "import functools, importlib.util, torch\nfrom pathlib import Path\n_libraries = []\n"
    f"_NMS = {arch._NMS!r}\n{inspect.getsource(arch.define_missing_ops)}"
    f"{inspect.getsource(arch._own_ops_load)}define_missing_ops()\n"
)
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


def published(config: RunConfig, run: Path) -> tuple[Backbone, TeacherCard]:
    """An exported teacher whose every weight differs from its initial value."""
    backbone = build_network(config).backbone.eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return backbone, export_teacher(open_store(str(run)), NAME, backbone, config=config, step=3)


def python_blocks(markdown: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)


def test_the_lines_of_the_readme_load_the_teacher_with_equal_features(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, card = published(config, tmp_path)
    monkeypatch.chdir(tmp_path / "teachers")
    import_timm()
    load, features = python_blocks(Path(NAME, "README.md").read_text())
    assert load.count("\n") == 3
    picture = Image.effect_mandelbrot((3 * card.img_px,) * 2, (-2, -1.5, 1, 1.5), 100).convert("RGB")
    scope: dict[str, Any] = {"image": picture}
    with torch.no_grad():
        exec(load + features, scope)
        for side_px in (16, 8, 24):
            ours = backbone(images(side_px))[:, 0]
            assert torch.allclose(scope["model"](images(side_px)), ours, rtol=1e-6, atol=1e-6)
        ours = backbone(normalized(fit(picture, card.img_px), card))[:, 0]
    assert scope["features"].shape == (1, card.num_features)
    assert torch.allclose(scope["features"], ours, rtol=1e-5, atol=1e-6)


def normalized(pixels: npt.NDArray[np.uint8], card: TeacherCard) -> torch.Tensor:
    scaled = (pixels / np.float32(255) - np.float32(card.mean)) / np.float32(card.std)
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]


def test_a_process_without_eosin_loads_the_teacher(tmp_path: Path) -> None:
    _, card = published(PLAIN, tmp_path)
    load, features = python_blocks((tmp_path / RunLayout.teacher_readme(NAME)).read_text())
    script = (
        f"{MISSING_OPS}{load}from PIL import Image\nimage = Image.new('RGB', (40, 32))\n{features}"
        "import sys\nassert not [name for name in sys.modules if name.startswith('eosin')]\n"
        "print(tuple(features.shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "teachers", capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == f"(1, {card.num_features})", done.stderr


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
    assert put == [
        RunLayout.teacher_weights(NAME),
        RunLayout.teacher_timm_config(NAME),
        RunLayout.teacher_readme(NAME),
        RunLayout.teacher_card(NAME),
    ]


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
    learner = Learner(config, build_network(config), World(config.train.num_microbatches))
    start = learner.student.backbone.vit.state_dict()
    assert card.step == 0 and card.name == "random-init"
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    other, _ = random_init(config.model_copy(update={"seed": config.seed + 1}))
    assert not torch.equal(other.state_dict()["pos_embed"], start["pos_embed"])


def test_building_a_network_leaves_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build_network(PLAIN)
    assert torch.equal(before, torch.random.get_rng_state())
