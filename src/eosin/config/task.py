"""Task configuration: what every kind of evaluation task has, and the kinds there are.

A kind of task is one module of `eosin.evaluation.tasks`, found by its being there. Such a module imports
nothing heavier than pydantic until its task is run, since every configuration is read with it.
"""

import importlib
import pkgutil
from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from eosin.config.base import NAME_PATTERN, READ_OUT_PATTERN, Section

TaskName = Annotated[str, Field(pattern=NAME_PATTERN)]
_PLUGINS = "eosin.evaluation.tasks"


class TaskConfig(Section):
    """One line of `evaluate.tasks`."""

    headline: ClassVar[tuple[str, ...]] = ()
    """Metrics that head the report, the first of them also what a promotion is decided on; none: all."""
    has_labels: ClassVar[bool] = True
    """Whether the dataset is labelled: then it matters whose patients the model has seen."""

    kind: str
    """What is done."""
    name: TaskName
    """Of the task, in records and in the report."""
    read_out: Annotated[str, Field(pattern=READ_OUT_PATTERN)] = "last"
    """Which features of an image are judged. last: the network's own output; cls_last_4: the class tokens
    after the last 4 blocks, each normed, one after the other; cls_last_4_mean_patch: these and the mean of
    the patch tokens, as DINOv2's linear evaluation has them."""


@cache
def task_kinds() -> dict[str, type[TaskConfig]]:
    """Every kind of task by its name in the configuration, in alphabetical order of their modules."""
    package = importlib.import_module(_PLUGINS)
    found: dict[str, type[TaskConfig]] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{_PLUGINS}."):
        for each in vars(importlib.import_module(module.name)).values():
            if isinstance(each, type) and issubclass(each, TaskConfig) and each.__module__ == module.name:
                kind = each.model_fields.get("kind")
                values = getattr(kind.annotation, "__args__", ()) if kind else ()
                found |= dict.fromkeys(values, each)
    return found
