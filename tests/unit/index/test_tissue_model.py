"""A learned tissue mask: what a model must be, and that every pixel gets the model's word."""

import sys
from pathlib import Path

import numpy as np
import pytest

from eosin.config.index import TissueConfig
from eosin.errors import UserError, install_command
from eosin.index.overview import Overview
from eosin.index.scan import scan_shard
from eosin.index.tissue import detect_tissue
from eosin.index.tissue_model import TissueModel, load_tissue_model
from tests.support.indexing import LOG, config_for, index, make_slides, rows_of
from tests.support.onnx_models import UINT8, color_model

pytest.importorskip("onnxruntime")

DARK = color_model([-20, -20, -20], 45)
"""Tissue where red, green and blue together stay below 2.25 of 3."""


def model_of(data: bytes) -> TissueModel:
    model = load_tissue_model("m.onnx", data)
    assert model is not None
    return model


@pytest.mark.parametrize("sides", [("h", "w"), (128, 128), (96, "w"), (64, 160)])
@pytest.mark.parametrize("shape", [(40, 50), (512, 512), (700, 1201), (1, 3)])
def test_windows_cover_every_pixel_once(sides: tuple[int | str, ...], shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    model = model_of(color_model([-20, -20, -20], 45, shape=("n", 3, *sides)))
    light = pixels.astype(np.float64).sum(2) / 255
    expected = 1 / (1 + np.exp(20 * light - 45))
    np.testing.assert_allclose(model.probability(pixels), expected, atol=1e-4)


def test_the_model_decides_in_place_of_the_thresholds() -> None:
    pixels = np.full((200, 200, 3), 240, np.uint8)
    pixels[50:150, 20:120] = (150, 150, 150)
    mask = detect_tissue(Overview(pixels, 1, 1, 0), 8, 8, TissueConfig(), model=model_of(DARK)).array
    assert mask[50:150, 20:120].all() and mask.sum() == 10_000
    assert not detect_tissue(Overview(pixels, 1, 1, 0), 8, 8, TissueConfig()).array.any(), "gray is dust"


@pytest.mark.parametrize(
    ("data", "met"),
    [
        (color_model([1, 1, 1, 1], 0, shape=("n", 4, "h", "w")), r"x: tensor\(float\) \['n', 4, 'h', 'w'\]"),
        (color_model([1, 1, 1], 0, shape=("n", "h", "w", 3)), r"takes x: tensor\(float\) \['n', 'h'"),
        (
            color_model([1, 1, 1], 0, stride=2),
            r"gives float32 \[1, 1, 256, 256\] for an input of \[1, 3, 512",
        ),
        (color_model([1, 1, 1], 0, channels_out=2), r"gives float32 \[1, 2, 512, 512\]"),
        (color_model([1, 1, 1], 5, sigmoid=False), "which are no probabilities"),
        (color_model([1, 1, 1], 0, shape=("n", 3, 8, 8)), "free or of 32 to 4096 px"),
        (color_model([1, 1, 1], 0, kind=UINT8), "no model that ONNX Runtime can load"),
        (b"not a model", "no model that ONNX Runtime can load"),
    ],
)
def test_what_does_not_keep_the_contract_is_named(data: bytes, met: str) -> None:
    with pytest.raises(UserError, match=met) as caught:
        load_tissue_model("s3://models/tissue.onnx", data)
    assert "s3://models/tissue.onnx" in caught.value.message and "float32 [N, 3, H, W]" in caught.value.hint


def test_without_onnx_runtime_the_error_is_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed") as caught:
        load_tissue_model("m.onnx", DARK)
    assert caught.value.hint == install_command("onnx")


def test_a_changed_model_makes_the_rows_anew_and_the_same_one_does_not(tmp_path: Path) -> None:
    slides, path = make_slides(tmp_path / "slides", 2), tmp_path / "tissue.onnx"
    config = config_for(slides, tmp_path / "index", f"index.tissue.onnx={path}")
    with pytest.raises(UserError, match="no tissue model at"):
        scan_shard(config, 0, 1, LOG)
    path.write_bytes(DARK)
    first = index(config)
    before = rows_of(tmp_path / "index")
    path.write_bytes(color_model([-20, -20, -20], 52))
    second = index(config)
    after = rows_of(tmp_path / "index")
    assert second.snapshot_id != first.snapshot_id
    assert all(after[name].tissue_mm2 > before[name].tissue_mm2 > 0 for name in before)
    path.write_bytes(DARK)
    assert index(config).snapshot_id == first.snapshot_id
