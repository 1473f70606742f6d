"""Read a configuration, override parts of it, and say plainly what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from eosin.config.run import RunConfig
from eosin.errors import UserError

Location = tuple[str | int, ...]


def load_config(text: str, *, source: str = "config", overrides: Iterable[str] = ()) -> RunConfig:
    """The run configuration in YAML `text`, with `a.b=c` overrides applied last.

    Raises `UserError` naming file and line, or the override, and the key and the nearest known key.
    """
    tree = _parse(text, source)
    applied = {_apply(tree, override): override for override in overrides}
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, text, source, applied) from error


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


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {_one_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{source} must be a mapping of sections, not {type(tree).__name__}")
    return tree


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def _apply(tree: dict[str, Any], override: str) -> Location:
    """Set the override's key in `tree`; returns where that is."""
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UserError(f"override {override!r} is not of the form section.key=value")
    try:
        parsed = yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: {_one_line(error)}") from error
    node: Any = tree
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {key} is a value, not a section")
    node[keys[-1]] = parsed
    return tuple(keys)


def _explain(error: ValidationError, text: str, source: str, applied: Mapping[Location, str]) -> UserError:
    lines = [
        _explain_one(dict(detail), _origin(tuple(detail["loc"]), text, source, applied))
        for detail in error.errors()
    ]
    return UserError("\n".join(lines), hint="`eosin recipes show demo` prints every key with its default")


def _origin(location: Location, text: str, source: str, applied: Mapping[Location, str]) -> str:
    """Who said what stands at `location`: an override, or a line of the file."""
    for length in range(len(location), 0, -1):
        if location[:length] in applied:
            return f"override {applied[location[:length]]!r}"
    line = _line_of(text, location)
    return f"{source}:{line}" if line else source


def _explain_one(detail: dict[str, Any], where: str) -> str:
    location = tuple(detail["loc"])
    path = ".".join(str(part) for part in location)
    if detail["type"] == "model_type":
        return f"{where}: {path} is a section of keys, not {detail.get('input')!r}"
    if detail["type"] == "extra_forbidden":
        near = _nearest(location)
        return f"{where}: unknown key {path}" + (f"; did you mean {near}?" if near else "")
    message = str(detail["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(detail.get("input"), dict) else f" (given: {detail.get('input')!r})"
    return f"{where}: {path + ': ' if path else ''}{message}{given}"


def _nearest(location: Location) -> str | None:
    """The known key nearest to an unknown one, as a full path; another section's if none here is near."""
    section: type[BaseModel] | None = RunConfig
    for part in location[:-1]:
        section = _section_of(section, part) if section is not None else None
    if section is None:
        return None
    prefix = ".".join(str(part) for part in location[:-1])
    near = difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1)
    if near:
        return f"{prefix}.{near[0]}" if prefix else near[0]
    everywhere = _all_paths(RunConfig)
    leaves = {path.rsplit(".", 1)[-1]: path for path in everywhere}
    far = difflib.get_close_matches(str(location[-1]), list(leaves), n=1)
    return leaves[far[0]] if far else None


def _section_of(section: type[BaseModel], part: str | int) -> type[BaseModel] | None:
    if not isinstance(part, str) or part not in section.model_fields:
        return None
    return _as_section(section.model_fields[part].annotation)


def _as_section(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _all_paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name, field in section.model_fields.items():
        inner = _as_section(field.annotation)
        path = f"{prefix}{name}"
        paths += [path] if inner is None else [path, *_all_paths(inner, f"{path}.")]
    return paths


def _line_of(text: str, location: Location) -> int | None:
    """1-based line of the deepest part of `location` that the YAML text holds."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line: int | None = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == part]
            if not pairs:
                break
            key, node = pairs[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
