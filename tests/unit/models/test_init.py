"""Warm starts: every tensor accounted for, whatever size and layout the file has."""

import argparse
import contextlib
import io
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eosin.config.model import ModelConfig
from eosin.errors import TransientError, UserError
from eosin.models.arch import create_vit, import_timm
from eosin.models.backbone import Backbone, CropGroup, build_backbone
from eosin.models.init import check_init, initialize
from eosin.models.weights import parse_tensors
from tests.support.golden import part, tensors
from tests.support.hub import hub
from tests.support.training_run import tiny_config

TINY = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
AT_16_PX = {**TINY, "img_size": 16, "dynamic_img_size": True}


def backbone(global_px: int = 16, **model: Any) -> Backbone:
    return build_backbone(tiny_config(model=model).model, global_px)


def stored(path: Path, vit: torch.nn.Module, prefix: str = "") -> str:
    save_file({prefix + name: value.contiguous() for name, value in vit.state_dict().items()}, path)
    return f"file://{path}"


def test_of_a_file_that_holds_student_and_teacher_the_teacher_is_taken(tmp_path: Path) -> None:
    student, teacher, target = backbone(), backbone(), backbone()
    both = {f"student.model.{name}": value for name, value in student.vit.state_dict().items()}
    both |= {f"teacher.model.{name}": value for name, value in teacher.vit.state_dict().items()}
    save_file({name: value.contiguous() for name, value in both.items()}, tmp_path / "m.safetensors")
    initialize(target, f"file://{tmp_path}/m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["", "module.", "teacher.backbone.", "model.backbone.", "net.encoder."])
def test_equal_sizes_load_whole(tmp_path: Path, prefix: str) -> None:
    source, target = backbone(), backbone()
    report = initialize(target, stored(tmp_path / "m.safetensors", source.vit, prefix))
    assert not report.interpolated and not report.dropped and not report.missing
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_other_image_and_patch_sizes_are_resampled_and_named(tmp_path: Path) -> None:
    source = create_vit("vit_tiny_patch16_224", {**TINY, "patch_size": 8, "img_size": 64, "init_values": 0.1,
                                                "dynamic_img_size": True})  # fmt: skip
    target = backbone()
    report = initialize(target, stored(tmp_path / "m.safetensors", source))
    assert set(report.interpolated) == {"pos_embed", "patch_embed.proj.weight"}
    assert not report.missing
    assert target(torch.zeros(1, 3, 16, 16)).isfinite().all()


def test_a_file_without_layer_scale_keeps_its_function(tmp_path: Path) -> None:
    source = create_vit("vit_tiny_patch16_224", AT_16_PX)
    target = backbone().eval()
    report = initialize(target, stored(tmp_path / "m.safetensors", source))
    assert report.identity_layer_scale and all(name.endswith("gamma") for name in report.missing)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(target(images)[:, 0], source.eval()(images), atol=1e-6)


def test_dinov2s_own_layout_with_its_mask_token(tmp_path: Path) -> None:
    golden = part(tensors("step_centering_shared_head_registers"), "student.backbone.")
    save_file(golden, tmp_path / "m.safetensors")
    size = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    arch_args = {**size, "reg_tokens": 4, "no_embed_class": True}
    target = build_backbone(tiny_config(model={"arch_args": arch_args}).model, 48)
    report = initialize(target, str(tmp_path / "m.safetensors"))
    assert not report.missing and not report.dropped
    assert torch.equal(target.mask_token, golden["mask_token"])
    assert torch.equal(target.vit.reg_token, golden["register_tokens"])
    assert torch.equal(target.vit.cls_token, golden["cls_token"] + golden["pos_embed"][:, :1])


REGISTERS = {**TINY, "reg_tokens": 4, "no_embed_class": True}


@pytest.mark.parametrize(("theirs", "ours"), [(TINY, REGISTERS), (REGISTERS, TINY)], ids=["gained", "lost"])
@pytest.mark.parametrize("px", [16, 32], ids=["same grid", "other grid"])
def test_positions_survive_registers_gained_or_lost(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], px: int
) -> None:
    """Class token and patches enter the first block as they did; registers alone are new or gone."""
    source, target = backbone(px, arch_args=theirs), backbone(arch_args=ours)
    report = initialize(target, stored(tmp_path / "m.safetensors", source.vit))
    assert set(report.missing) == ({"reg_token"} if ours is REGISTERS else set())
    assert set(report.dropped) == ({"reg_token"} if theirs is REGISTERS else set())
    assert set(report.interpolated) == (set() if px == 16 else {"pos_embed"})
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (b._embed(CropGroup(images)) for b in (source, target))
    patches = slice(-16, None)
    assert torch.allclose(one[:, 0], other[:, 0], atol=1e-6)
    assert torch.allclose(one[:, patches], other[:, patches], atol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"depth": 2}, "has 2 blocks, and model.arch has 3"),
        ({"depth": 5}, "has 5 blocks, and model.arch has 3"),
        ({"mlp_ratio": 3}, r"blocks.0.mlp.fc1.weight is \[96, 32\], not \[128, 32\]"),
    ],
)
def test_blocks_that_would_be_half_random_are_refused(
    tmp_path: Path, theirs: dict[str, Any], message: str
) -> None:
    source = backbone(arch_args={**TINY, **theirs})
    with pytest.raises(UserError, match=message):
        initialize(backbone(), stored(tmp_path / "m.safetensors", source.vit))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    source = backbone()
    with torch.no_grad():
        source.vit.blocks[1].attn.proj.bias[3] = float("nan")
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.proj\.bias holds numbers that are not finite"):
        initialize(backbone(), stored(tmp_path / "m.safetensors", source.vit))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = create_vit("vit_tiny_patch16_224", {**AT_16_PX, "embed_dim": 64})
    with pytest.raises(UserError, match=r"do not fit model\.arch"):
        initialize(backbone(), stored(tmp_path / "m.safetensors", source))
    (tmp_path / "not.safetensors").write_bytes(b"PK\x03\x04 a pickle, perhaps")
    with pytest.raises(UserError, match="is not a safetensors file"):
        initialize(backbone(), str(tmp_path / "not.safetensors"))
    with pytest.raises(UserError, match="there is no"):
        initialize(backbone(), str(tmp_path / "absent.safetensors"))
    with pytest.raises(UserError, match=r"has no model 'vit_nowhere\.tag'"):
        initialize(backbone(), "timm:vit_nowhere.tag")
    with pytest.raises(UserError, match=r"has no weights 'vit_tiny_patch16_224\.of_mars'"):
        initialize(backbone(), "timm:vit_tiny_patch16_224.of_mars")


@pytest.fixture
def timm_from(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let timm find its pretrained weights elsewhere than on the hub."""

    def point(**overlay: Any) -> None:
        timm = import_timm()
        create = timm.create_model
        monkeypatch.setattr("eosin.models.weights._require_reachable", lambda name, what: None)
        monkeypatch.setattr(
            timm,
            "create_model",
            lambda *args, **options: create(*args, **options, pretrained_cfg_overlay=overlay),
        )

    return point


def test_timms_own_weights_at_another_crop_size(tmp_path: Path, timm_from: Callable[..., None]) -> None:
    """A checkpoint as timm publishes it, classifier and all, by its name."""
    name = "test_vit.r160_in1k"
    source = import_timm().create_model("test_vit", pretrained=False, num_classes=1000)
    save_file(
        {key: value.contiguous() for key, value in source.state_dict().items()}, tmp_path / "w.safetensors"
    )
    timm_from(file=str(tmp_path / "w.safetensors"), num_classes=1000)
    target = build_backbone(
        tiny_config(model={"arch": "test_vit", "arch_args": {}, "layer_scale": None}).model, 96
    )
    report = initialize(target, f"timm:{name}")
    assert report.interpolated == ("pos_embed",) and not report.missing
    ours, theirs = target.vit.state_dict(), source.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key != "pos_embed")
    assert ours["pos_embed"].shape == (1, 1 + 6 * 6, 64)


def test_weights_that_cannot_be_fetched_say_what_to_do(timm_from: Callable[..., None]) -> None:
    timm_from(url="http://127.0.0.1:9/model.safetensors", hf_hub_id=None)
    target = build_backbone(tiny_config(model={"arch": "test_vit", "arch_args": {}}).model, 96)
    with pytest.raises(TransientError) as caught:
        initialize(target, "timm:test_vit.r160_in1k")
    assert "could not be fetched" in str(caught.value)
    assert "huggingface.co/timm/test_vit.r160_in1k" in (caught.value.hint or "")


@pytest.mark.parametrize("nested", ["", "teacher", "state_dict", "backbone"])
def test_a_pytorch_file_is_read_by_the_restricted_unpickler(tmp_path: Path, nested: str) -> None:
    source, target = backbone(), backbone()
    state: dict[str, Any] = dict(source.vit.state_dict())
    torch.save(
        {nested: state, "epoch": 3, "args": argparse.Namespace(lr=1.0)} if nested else state,
        tmp_path / "vit.pth",
    )
    report = initialize(target, f"file://{tmp_path}/vit.pth")
    assert not report.missing and report.summary()["converted_from_pytorch"]
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_the_check_before_training_knows_the_hub_and_pytorch_files(tmp_path: Path) -> None:
    torch.save(dict(backbone().vit.state_dict()), tmp_path / "vit.pth")
    for init in ("hf-hub:owner/name", f"file://{tmp_path}/vit.pth"):
        check_init(tiny_config(model={"init": init}))
    with pytest.raises(UserError, match="there is no"):
        check_init(tiny_config(model={"init": f"file://{tmp_path}/none.pth"}))


class Trap:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/eosin-test-trap").write_text, ("sprung",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Trap(), "cannot be read safely"),
        ([1, 2], "no tensors by name"),
        (b"PK torn", "cannot be read safely"),
        (b"hello world\n", "cannot be read safely"),
        (b"", "cannot be read safely"),
        ({"norm.weight": torch.zeros(3, device="meta")}, "norm.weight as .*, on meta"),
        ({"norm.weight": torch.eye(3).to_sparse()}, "torch.sparse_coo"),
        ({"norm.weight": torch.zeros(3, dtype=torch.complex64)}, "torch.complex64"),
    ],
)
def test_a_pytorch_file_that_holds_anything_else_is_refused(
    tmp_path: Path, content: object, words: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "vit.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=words):
        initialize(backbone(), f"file://{tmp_path}/vit.pth")
    assert not Path("/tmp/eosin-test-trap").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(5, "disk"), NotImplementedError(), RuntimeError("can't allocate memory")]
)
def test_what_fails_of_this_machine_is_not_put_down_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "vit.pth").write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        initialize(backbone(), f"file://{tmp_path}/vit.pth")


def test_a_pytorch_file_damaged_anywhere_is_the_users(tmp_path: Path) -> None:
    rng = random.Random(7)
    for old in (False, True):
        written = io.BytesIO()
        torch.save({"w": torch.ones(100)}, written, _use_new_zipfile_serialization=not old)
        for _ in range(150):
            data = bytearray(written.getvalue())
            data[rng.randrange(len(data))] = rng.randrange(256)
            with contextlib.suppress(UserError):
                parse_tensors(
                    bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)]), "s3://b/x.pth", "x"
                )


HUB = """
import sys
from eosin.errors import EosinError
from eosin.models.init import initialize
from eosin.models.init import check_init
from eosin.models.backbone import build_backbone
from tests.support.training_run import tiny_config
model = tiny_config(model={"arch": "test_vit", "arch_args": {}}).model
try:
    print(len(initialize(build_backbone(model, 96), sys.argv[1]).loaded))
except EosinError as error:
    print(type(error).__name__, error)
"""


def from_hub(name: str, endpoint: str, cache: Path) -> str:
    """What a process says that starts from `name`, with a hub of its own."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", HUB, name], env=env, capture_output=True, text=True, timeout=280
    ).stdout


def test_a_model_of_the_hub_is_taken_by_its_name_and_its_absence_is_said(tmp_path: Path) -> None:
    vit = import_timm().create_model("test_vit", num_classes=0)
    with hub(tmp_path / "hub", {"owner/tiny": vit}) as endpoint:
        assert int(from_hub("hf-hub:owner/tiny", endpoint, tmp_path / "cache")) == len(vit.state_dict())
        said = from_hub("hf-hub:owner/other", endpoint, tmp_path / "cache")
        assert said.startswith("UserError") and "not on the hub" in said


def test_a_hub_out_of_reach_is_said_at_the_first_try(tmp_path: Path) -> None:
    """Its client would try again for minutes."""
    tries = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                tries.append(connection.close())

        threading.Thread(target=hang_up, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        said = from_hub("timm:vit_small_patch16_224.dino", endpoint, tmp_path)
    assert said.startswith("TransientError") and "could not be fetched" in said
    assert len(tries) <= 3


def test_classes_among_the_arguments_are_named(tmp_path: Path) -> None:
    swiglu = {**AT_16_PX, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    vit = create_vit("vit_tiny_patch16_224", swiglu)
    assert type(vit.blocks[0].mlp).__name__ == "GluMlp"  # type: ignore[index,union-attr]  # a timm model
    with pytest.raises(UserError, match=r"timm\.layers has no 'SwiGluPacked'"):
        create_vit("vit_tiny_patch16_224", {**swiglu, "mlp_layer": "SwiGluPacked"})


def test_no_layer_scale_is_none_in_every_family() -> None:
    """timm.create_model drops an argument that is None and takes DINOv3's own."""
    for arch in ("vit_tiny_patch16_224", "vit_small_patch16_dinov3"):
        model = ModelConfig(arch=arch, arch_args={**TINY, "depth": 1}, layer_scale=None)
        names = dict(build_backbone(model, 16).vit.named_parameters())
        assert not [name for name in names if "gamma" in name]


def test_random_changes_nothing() -> None:
    target = backbone()
    before = [parameter.clone() for parameter in target.parameters()]
    report = initialize(target, "random")
    assert report.summary()["num_loaded"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


def test_short_names_are_those_that_timm_itself_finds() -> None:
    plain = create_vit("vit_tiny_patch16_224", {**AT_16_PX, "act_layer": "silu", "norm_layer": "rmsnorm"})
    assert type(plain.blocks[0].mlp.act).__name__ == "SiLU"  # type: ignore[union-attr,index]
    assert type(plain.blocks[0].norm1).__name__ == "RmsNorm"  # type: ignore[union-attr,index]
    named = {"act_layer": ("rmsnorm", "QuickGELU"), "norm_layer": ("nonsense",), "mlp_layer": ("swiglu",)}
    for key, value in ((key, value) for key, values in named.items() for value in values):
        with pytest.raises(UserError, match=rf"arch_args\.{key}: timm\.layers has no '{value}'"):
            create_vit("vit_tiny_patch16_224", {**AT_16_PX, key: value})
