"""Configuration files: YAML with every key once, overridden, written, compared; mistakes in plain words."""

import copy
import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from eosin.config.base import FORMS
from eosin.config.run import RunConfig
from eosin.errors import UserError

Location = tuple[str | int, ...]
_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys, and says nothing of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping's keys and values. Raises `_DuplicateKey` for a key that stands there twice."""
        if isinstance(node, yaml.MappingNode):
            seen: dict[Any, yaml.Mark] = {}
            for key_node, _ in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is None or key_node.tag == _MERGE:
                    continue
                if key in seen:
                    raise _DuplicateKey(key, seen[key], key_node.start_mark)
                seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep=deep)


class _DuplicateKey(yaml.YAMLError):
    def __init__(self, key: str, first: yaml.Mark, second: yaml.Mark) -> None:
        super().__init__(key)
        lines = first.line + 1, second.line + 1
        where = f"on line {lines[0]}" if lines[0] == lines[1] else f"on lines {lines[0]} and {lines[1]}"
        self.problem = f"key {key!r} stands twice, {where}"


def parse_yaml(text: str, source: str) -> Any:
    """The value that `text` holds (None where it is empty).

    Raises `UserError` naming `source` and the line where it is no YAML, and both lines where a key stands
    twice in one mapping.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except _DuplicateKey as error:
        raise UserError(f"{source}: {error.problem}", hint="keep one of them") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply") from error
    except ValueError as error:  # a timestamp such as 2024-13-45
        raise UserError(f"{source} is not YAML: {error}") from error


def line_of(text: str, location: Location, *, whole: bool = False) -> int | None:
    """1-based line of the deepest part of `location` that the YAML text holds; `whole`: None for a part."""
    node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    line: int | None = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(part)]
            if not pairs:
                return None if whole else line
            key, node = pairs[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return None if whole else line
    return line


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def load_config(
    content: str | Mapping[str, Any], *, source: str = "config", overrides: Iterable[str] = ()
) -> RunConfig:
    """The run configuration that YAML text or a mapping holds, with `a.b=c` overrides applied last.

    Raises `UserError` naming file and line, or the override, and the key and the nearest known key; also
    for a key that stands twice in one section.
    """
    text = content if isinstance(content, str) else ""
    if isinstance(content, str):
        tree = _sections(parse_yaml(content, source), source)
    else:
        tree = copy.deepcopy(dict(content))  # overrides are written into it
    if isinstance(tree.get("slides"), list):  # so that overrides find the section that it stands for
        tree["slides"] = {"sources": tree["slides"]}
    applied = {_apply(tree, override): override for override in overrides}
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, text, source, applied) from error


def with_overrides(config: RunConfig, overrides: Iterable[str], *, source: str = "config") -> RunConfig:
    """`config` with `a.b=c` overrides. Raises as `load_config` does; `source` is what it calls `config`."""
    return load_config(config.model_dump(mode="json"), source=source, overrides=overrides)


def require_each_once(overrides: Sequence[str]) -> None:
    """Raises `UserError` where an override undoes an earlier one: of the same key, or a section around it."""
    said: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys = override_keys(override)
        for before, text in said.items():
            if before[: len(keys)] == keys and text != override:
                raise UserError(f"{text} and {override} contradict: both set {'.'.join(before)}",
                                hint="keep one of them")  # fmt: skip
        said[keys] = override


def override_keys(override: str) -> tuple[str, ...]:
    """The path that an override `a.b=c` sets."""
    return tuple(override.partition("=")[0].strip().split("."))


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


def _apply(tree: dict[str, Any], override: str) -> Location:
    """Set the override's key in `tree`; returns where that is."""
    _, separator, value = override.partition("=")
    keys = override_keys(override)
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
    return keys


_HINT = "`eosin recipes show demo` prints every key"
_MAX_GIVEN_CHARS = 120


def explain(error: ValidationError, text: str, source: str, applied: Mapping[Location, str]) -> UserError:
    """Every mistake on a line of its own.

    `text` is the YAML that was read (empty: none), `source` its name, `applied` the overrides by the place
    in the tree where they were put.
    """
    lines = dict.fromkeys(_explain_one(dict(detail), text, source, applied) for detail in error.errors())
    return UserError("\n".join(lines), hint=_HINT)


def _explain_one(detail: dict[str, Any], text: str, source: str, applied: Mapping[Location, str]) -> str:
    location = tuple(detail["loc"])
    kind = detail["type"]
    plain = _without_kinds(location, is_unknown=kind == "extra_forbidden")
    if kind == "missing" and isinstance(plain[-1], int):  # of a list of a fixed length
        plain, detail = plain[:-1], {**detail, "type": "too_few"}
    path = ".".join(map(str, plain))
    if kind == "extra_forbidden":
        near = _nearest(plain, location)
        message = f"unknown key {path}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    elif kind == "model_type":
        message = f"{path} is a section of keys, not {detail.get('input')!r}"
    else:
        message = f"{path + ': ' if path else ''}{_words_and_given(detail)}"
    return f"{_origin(plain, message, text, source, applied)}: {message}"


def _origin(location: Location, message: str, text: str, source: str, applied: Mapping[Location, str]) -> str:
    """Who said what stands at `location`: an override, or a line of the file."""
    for length in range(len(location), 0, -1):
        if location[:length] in applied:
            return f"override {applied[location[:length]]!r}"
    within = {keys: override for keys, override in applied.items() if keys[: len(location)] == location}
    if location and within and line_of(text, location, whole=True) is None:
        return f"override {', '.join(map(repr, within.values()))}"
    line = line_of(text, location)
    where = f"{source}:{line}" if line else source
    # What is wrong with several keys together stands at their section.
    parts = [repr(override) for keys, override in within.items() if str(keys[-1]) in message]
    return f"{where} with override {', '.join(parts)}" if parts else where


def _given(detail: dict[str, Any]) -> str:
    text = repr(detail.get("input"))
    return f" (given: {text if len(text) <= _MAX_GIVEN_CHARS else text[:_MAX_GIVEN_CHARS] + '…'})"


def first_words(error: ValidationError) -> str:
    """What is wrong with the value of an option: "must be a whole number (given: 'abc')"."""
    return _words_and_given(dict(error.errors()[0]))


def _words_and_given(detail: dict[str, Any]) -> str:
    is_shown = detail["type"] not in _WITHOUT_INPUT and not isinstance(detail.get("input"), dict)
    return _words(detail) + (_given(detail) if is_shown else "")


def _words(detail: dict[str, Any]) -> str:
    """What pydantic says, in the words of who writes YAML."""
    words, context = _WORDS.get(detail["type"]), detail.get("ctx") or {}
    if words is None:
        return str(detail["msg"]).removeprefix("Value error, ")
    return words if isinstance(words, str) else words(context, detail.get("input"))


def _one_of(context: Mapping[str, Any], given: Any) -> str:
    text = str(context.get("expected") or context.get("expected_tags"))
    names = [name.strip(" '") for name in text.replace(" or ", ", ").split(",")]
    near = difflib.get_close_matches(str(given), names, n=1)
    return f"must be one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")


def _kind(context: Mapping[str, Any], given: Any) -> str:
    key = str(context["discriminator"]).strip("'")
    return f"{key} {_one_of(context, given.get(key) if isinstance(given, Mapping) else given)}"


def _form(context: Mapping[str, Any], given: Any) -> str:
    pattern = str(context["pattern"])
    return f"must be {FORMS[pattern]}" if pattern in FORMS else f"must match the pattern {pattern}"


_WITHOUT_INPUT = frozenset({"missing", "too_few", "union_tag_not_found"})
_WORDS: dict[str, str | Callable[[Mapping[str, Any], Any], str]] = {
    "missing": "is missing",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text (in quotes, where it looks like a number)",
    "tuple_type": "must be a list, as in [a, b]",
    "list_type": "must be a list, as in [a, b]",
    "dict_type": "must be a mapping, as in {key: value}",
    "model_attributes_type": "must be a section of keys",
    "greater_than": lambda context, _: f"must be greater than {context['gt']}",
    "greater_than_equal": lambda context, _: f"must be greater than or equal to {context['ge']}",
    "less_than": lambda context, _: f"must be less than {context['lt']}",
    "less_than_equal": lambda context, _: f"must be less than or equal to {context['le']}",
    "multiple_of": lambda context, _: f"must be a multiple of {context['multiple_of']}",
    "string_too_short": "must not be empty",
    "too_few": "has too few entries",
    "too_short": lambda context, _: f"needs at least {context['min_length']} entries",
    "too_long": lambda context, _: f"takes at most {context['max_length']} entries",
    "literal_error": _one_of,
    "union_tag_invalid": _kind,
    "union_tag_not_found": lambda context, _: f"{context['discriminator']} is missing".replace("'", ""),
    "string_pattern_mismatch": _form,
}


def _nearest(plain: Location, location: Location) -> list[str]:
    """The known keys nearest to an unknown one, as full paths; of other sections if none here is near.

    `location` is `plain` with the kinds of what it lies in.
    """
    *section, name = map(str, plain)
    here = [
        keys[-1]
        for keys, kinds in _known_keys()
        if _fits(keys[:-1], section) and (not kinds or kinds & set(location))
    ]
    near = difflib.get_close_matches(name, here, n=1)
    if near:
        return [".".join([*section, near[0]])]
    everywhere = [keys for keys, _ in _known_keys() if _ANY not in keys]
    far = difflib.get_close_matches(name, [keys[-1] for keys in everywhere], n=1)
    return [".".join(keys) for keys in everywhere if keys[-1] in far][:3]


def _without_kinds(location: Location, *, is_unknown: bool) -> Location:
    """`location` less what pydantic puts between keys: kinds of entries, its mark of a mapping's key.

    `is_unknown`: its last part is a key that no section has.
    """
    kept: list[str | int] = []
    for place, part in enumerate(location):
        last = is_unknown and place == len(location) - 1
        if last or any(_fits(keys[: len(kept) + 1], [*kept, part]) for keys, _ in _known_keys()):
            kept.append(part)
    return tuple(kept)


_ANY = "*"
"""In the place of an entry of a list or a mapping."""


def _fits(keys: Sequence[str], location: Sequence[str | int]) -> bool:
    return len(keys) == len(location) and all(
        k in (_ANY, str(p)) for k, p in zip(keys, location, strict=True)
    )


@cache
def _known_keys() -> tuple[tuple[tuple[str, ...], frozenset[str]], ...]:
    """Every key of the configuration: its path from the root, and the kinds of what has it (none: any)."""
    return tuple(_keys_of(RunConfig, ()))


def _keys_of(annotation: Any, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], frozenset[str]]]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        kinds = frozenset(get_args(kind.annotation)) if kind else frozenset[str]()
        for name, field in annotation.model_fields.items():
            yield (*path, name), kinds
            yield from _keys_of(field.annotation, (*path, name))
    elif origin in (tuple, list, dict):
        yield (*path, _ANY), frozenset()
        for each in arguments[1:] if origin is dict else arguments:
            yield from _keys_of(each, (*path, _ANY))
    elif origin is not Literal:  # a union, or a type that carries notes
        for each in arguments[:1] if origin is Annotated else arguments:
            yield from _keys_of(each, path)
