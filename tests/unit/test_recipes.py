"""Every recipe loads, says what it is, and can be copied."""

from pathlib import Path

import pytest

from eosin.config import load_config
from eosin.errors import UserError
from eosin.recipes import copy_recipe, list_recipes, load_recipe


def test_every_recipe_loads_and_describes_itself() -> None:
    recipes = list_recipes()
    assert {"demo", "vits16-dino", "vitl14-reg4-dinov2"} <= {recipe.name for recipe in recipes}
    for recipe in recipes:
        config = load_config(*load_recipe(recipe.name)[:1], source=recipe.name)
        assert recipe.description and config.recipe == recipe.name


def test_copied_recipe_is_the_recipe_and_is_not_overwritten(tmp_path: Path) -> None:
    path = copy_recipe("demo", tmp_path)
    assert load_config(path.read_text()) == load_config(load_recipe("demo")[0])
    with pytest.raises(UserError, match="already there"):
        copy_recipe("demo", tmp_path)


def test_a_file_and_a_uri_serve_as_recipes(tmp_path: Path) -> None:
    (tmp_path / "own recipe.yaml").write_text("seed: 9\n")
    assert load_recipe(str(tmp_path / "own recipe.yaml"))[0] == "seed: 9\n"
    assert load_recipe(f"file://{tmp_path}/own recipe.yaml")[0] == "seed: 9\n"


@pytest.mark.parametrize("recipe", ["dmeo", "absent.yaml", "file:///nowhere/absent.yaml"])
def test_missing_recipe_is_a_users_error(recipe: str) -> None:
    with pytest.raises(UserError):
        load_recipe(recipe)


@pytest.mark.parametrize("text", ["", "\n\n", "# seed: 9\n", "---\n"])
def test_a_recipe_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "half.yaml").write_text(text)
    with pytest.raises(UserError, match="holds no key"):
        load_recipe(str(tmp_path / "half.yaml"))


def test_a_recipes_name_with_a_suffix_names_the_recipe() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("demo.yaml")
    assert caught.value.hint == "did you mean demo?"
