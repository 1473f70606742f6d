"""Every recipe can be trained, and says truly what a patch costs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eosin.config import load_config
from eosin.training.check import check_training

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe_passes_the_check_and_its_cost_is_true(path: Path) -> None:
    config = load_config(path.read_text(), source=path.name)
    figures = check_training(config)
    assert config.recipe == path.stem
    stated = re.search(r"([\d,]+) GFLOP a patch", config.description)
    if path.stem != "demo":
        assert stated is not None
        assert float(stated[1].replace(",", "")) == pytest.approx(figures["gflop_per_image"], rel=0.01)
