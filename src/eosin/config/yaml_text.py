"""YAML of users: every key once, and the line that a key stands on."""

from collections.abc import Hashable
from typing import Any

import yaml

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
