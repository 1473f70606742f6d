"""recipes: list, show, copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eosin.cli.output import AsJson, emit

recipes_app = typer.Typer(no_args_is_help=True, help="Complete configurations to begin from.")


def register(app: typer.Typer) -> None:
    """Add the verb group to `app`."""
    app.add_typer(recipes_app, name="recipes")


@recipes_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The recipes that ship with eosin."""
    from eosin.recipes import list_recipes

    recipes = list_recipes()
    text = "\n".join(f"{recipe.name:<28} {recipe.description}" for recipe in recipes)
    emit({"recipes": recipes}, as_json=as_json, text=text)


@recipes_app.command("show")
def show(recipe: str, as_json: AsJson = False) -> None:
    """Every key of a recipe, defaults included."""
    from eosin.config import dump_config, load_config
    from eosin.recipes import load_recipe

    text, source = load_recipe(recipe)
    config = load_config(text, source=source)
    emit(config, as_json=as_json, text=dump_config(config).rstrip())


@recipes_app.command("copy")
def copy(
    recipe: str,
    target: Annotated[Path, typer.Argument(help="A file, or a folder to put it in.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a recipe to a file of your own, to edit."""
    from eosin.recipes import copy_recipe

    path = copy_recipe(recipe, target)
    emit({"path": str(path)}, as_json=as_json, text=str(path))
