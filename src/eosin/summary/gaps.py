"""Evaluations that gave no figure to rely on, each reason told once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MAX_NAMED = 6


@dataclass(frozen=True)
class Gap:
    """Every one of `models` on every one of `tasks`."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    status: str
    reason: str


def find_gaps(evaluations: Iterable[tuple[str, str, str, str]]) -> list[Gap]:
    """(model, task, status, reason) of each, gathered where status and reason are the same.

    A dataset that is not there fails every model alike, and a model that is not judged lacks every task:
    one line each, not one a pair.
    """
    models: dict[tuple[str, str, str], list[str]] = {}
    for model, task, status, reason in dict.fromkeys(evaluations):
        models.setdefault((task, status, reason), []).append(model)
    tasks: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
    for (task, status, reason), names in models.items():
        tasks.setdefault((tuple(names), status, reason), []).append(task)
    return [Gap(names, tuple(found), status, reason) for (names, status, reason), found in tasks.items()]


def listed(names: tuple[str, ...], unit: str) -> str:
    """The first names, and how many more there are; `unit` in the plural."""
    if len(names) <= _MAX_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_MAX_NAMED])} and {len(names) - _MAX_NAMED} more {unit}"
