"""Every recipe can be trained, says truly what a patch costs, and shows its plan."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eosin.cli.app import app
from eosin.config import load_config
from eosin.training.check import check_training

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
_SHOWN_ALWAYS = {"vits16-dino", "vitg14-dinov2-highres"}
# Of the 790 TFLOP/s that an H200 reaches in bf16.
_UTILISATION, _PEAK_FLOPS = 0.4, 790e12


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe_passes_the_check_and_its_cost_is_true(path: Path) -> None:
    config = load_config(path.read_text(), source=path.name)
    figures = check_training(config)
    assert config.recipe == path.stem
    if path.stem == "demo":
        return
    gflop, patches, hours = (
        _stated(pattern, config.description)
        for pattern in (r"([\d,]+) GFLOP a patch", r"([\d,]+) M patches", r"about ([\d,]+) H200-hours")
    )
    assert gflop == pytest.approx(figures["gflop_per_image"], rel=0.01)
    assert patches == pytest.approx(figures["patches"] / 1e6, rel=0.02)
    expected_s = figures["exaflop"] * 1e18 / (_UTILISATION * _PEAK_FLOPS)
    assert hours == pytest.approx(expected_s / 3600, rel=0.06)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in _SHOWN_ALWAYS else pytest.mark.long)
        for path in RECIPES
    ],
)
def test_recipe_shows_its_plan(path: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "one.svs").write_bytes(b"slide")
    places = ["--run", str(tmp_path / "run"), "--slides", str(tmp_path / "slides")]
    # Weights of an earlier run are looked up, and there is none here.
    own = ["--set", "model.init=random"] if "run:" in path.read_text() else []
    result = CliRunner().invoke(app, ["run", path.stem, "--dry-run", *places, *own])
    assert result.exit_code == 0, result.output
    assert "gflop_per_image" in result.output and not (tmp_path / "run").exists()


def _stated(pattern: str, description: str) -> float:
    found = re.search(pattern, description)
    assert found is not None, f"{pattern} in {description}"
    return float(found[1].replace(",", ""))
