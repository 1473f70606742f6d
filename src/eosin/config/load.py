"""Configuration files: read, overridden in part, written; and two of them compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from eosin.config.explain import explain
from eosin.config.run import RunConfig
from eosin.config.yaml_text import Location, parse_yaml
from eosin.errors import UserError


def load_config(
    content: str | Mapping[str, Any], *, source: str = "config", overrides: Iterable[str] = ()
) -> RunConfig:
    """The run configuration that YAML text or a mapping holds, with `a.b=c` overrides applied last.

    Raises `UserError` naming file and line, or the override, and the key and the nearest known key; also
    for a key that stands twice in one section.
    """
    text = content if isinstance(content, str) else ""
    tree = _sections(parse_yaml(content, source), source) if isinstance(content, str) else _copied(content)
    applied = {_apply(tree, override): override for override in overrides}
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, text, source, applied) from error


def with_overrides(config: RunConfig, overrides: Iterable[str], *, source: str = "config") -> RunConfig:
    """`config` with `a.b=c` overrides. Raises as `load_config` does; `source` is what it calls `config`."""
    return load_config(config.model_dump(mode="json"), source=source, overrides=overrides)


def dump_config(config: RunConfig) -> str:
    """YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """`a.b: old → new` for every leaf that differs."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        name = f"{path}.{key}" if path else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, name)
        elif before != after:
            lines.append(f"{name}: {before!r} → {after!r}")
    return lines


def _sections(tree: Any, source: str) -> dict[str, Any]:
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{source} must be a mapping of sections, not {type(tree).__name__}")
    return tree


def _copied(content: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides are written into a copy, not into what the caller holds."""
    return copy.deepcopy(dict(content))


def _apply(tree: dict[str, Any], override: str) -> Location:
    """Set the override's key in `tree`; returns where that is."""
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UserError(f"override {override!r} is not of the form section.key=value")
    parsed = parse_yaml(value, f"override {override!r}") if value.strip() else ""
    node: Any = tree
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {key} is a value, not a section")
    node[keys[-1]] = parsed
    return tuple(keys)
