"""The recipes that ship with eosin, and any other configuration by path or URI."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from eosin.config.load import require_each_once
from eosin.errors import UserError
from eosin.storage import read_object
from eosin.words import nearest_of


@dataclass(frozen=True)
class ConfigSource:
    """Where a configuration comes from: a recipe by name, path or URI, and what is changed in it."""

    recipe: str = ""
    """Empty: that of a run which is there already."""
    settings: Sequence[str] = ()
    """Overrides, `section.key=value`."""
    slides: str = ""
    """Shorthand for slides.uri."""
    index: str = ""
    """Shorthand for index.uri."""

    def overrides(self) -> list[str]:
        """All overrides. Raises `UserError` where two of them contradict."""
        short = (("slides.uri", self.slides), ("index.uri", self.index))
        found = [
            *(f"{key}={json.dumps(uri, ensure_ascii=False)}" for key, uri in short if uri),
            *self.settings,
        ]
        require_each_once(found)
        return found


@dataclass(frozen=True)
class Recipe:
    """A packaged recipe, and what it is for."""

    name: str
    description: str


def list_recipes() -> list[Recipe]:
    """The packaged recipes, by name."""
    told = {name: str(yaml.safe_load(_packaged(name)).get("description", "")) for name in _names()}
    return [Recipe(name, " ".join(description.split())) for name, description in told.items()]


def load_recipe(recipe: str) -> tuple[str, str]:
    """(YAML text, where it came from) of a packaged recipe, a local file or an object's URI.

    Raises `UserError` with the nearest recipe where there is none of that name.
    """
    if recipe in _names():
        return _packaged(recipe), f"recipe {recipe}"
    hint = nearest_of(Path(recipe).stem, _names())
    if "://" in recipe or recipe.endswith((".yaml", ".yml")) or Path(recipe).expanduser().is_file():
        try:
            data = read_object(recipe, absent=f"there is no configuration at {recipe}", hint=hint)
            text = data.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{recipe} is not text: {error.reason} at byte {error.start}") from error
        if not re.sub(r"#.*|---", "", text).strip():  # half saved: its defaults would train for weeks
            raise UserError(
                f"{recipe} holds no key", hint="`eosin recipes copy demo FILE` writes a whole one"
            )
        return text, recipe
    raise UserError(f"there is no recipe {recipe!r}", hint=hint)


def copy_recipe(name: str, target: Path) -> Path:
    """Write a packaged recipe to `target` (a file, or a folder to put it in); never overwrites."""
    text, _ = load_recipe(name)
    path = target / f"{Path(name).stem}.yaml" if target.is_dir() else target
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} is already there", hint="name another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _names() -> list[str]:
    folder = files("eosin_recipes")
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _packaged(name: str) -> str:
    return files("eosin_recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
