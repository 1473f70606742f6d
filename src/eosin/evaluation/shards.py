"""Evaluation in shards: a share of all pairs of model and task, each model and each dataset loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

from eosin.errors import TransientError, UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.evaluate import evaluate, find_judged_model
from eosin.evaluation.task import Task
from eosin.observability import RunLog
from eosin.records import MetricRecord
from eosin.runs import load_run
from eosin.storage import open_store

_DATASETS_HELD = 16


@dataclass(frozen=True)
class Evaluation:
    """One model of one run, to be judged on one task of it."""

    run: str
    """URI of the run."""
    model: str
    task: str

    @property
    def group(self) -> tuple[str, str]:
        """What is loaded once for all of its tasks."""
        return self.run, self.model


def share_of_evaluations(evaluations: Sequence[Evaluation], shard: int, num_shards: int) -> list[Evaluation]:
    """The part of shard `shard` of `num_shards`, in order; the parts of all shards make up `evaluations`.

    A model's evaluations stay in one shard where there are as many models as shards, else they are shared
    out, neighbours together. Raises `UserError` for a shard that cannot be.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"there is no shard {shard} of {num_shards}", hint="shards count from 0")
    groups = [list(group) for _, group in groupby(evaluations, key=lambda each: each.group)]
    if len(groups) < num_shards:
        groups = [[each] for each in evaluations]
    first, last = shard * len(groups) // num_shards, (shard + 1) * len(groups) // num_shards
    return [each for group in groups[first:last] for each in group]


def evaluate_all(
    evaluations: Sequence[Evaluation], log_of: Callable[[Evaluation], AbstractContextManager[RunLog]]
) -> Iterator[MetricRecord]:
    """The record of each evaluation as it is published; one that is there already is not made again.

    One model's weights are in memory at a time. What may pass ends one evaluation and not the others: its
    `TransientError` is raised at the end, so that a further call makes what is missing. Raises `UserError`
    for a model or task that the run does not have.
    """
    datasets = _Datasets()
    passing: TransientError | None = None
    for (run, model), group in groupby(evaluations, key=lambda each: each.group):
        store = open_store(run)
        judged = find_judged_model(run, load_run(run, store=store), model, store)
        judged = replace(judged, load=cache(judged.load))
        for each in group:
            try:
                with log_of(each) as log:
                    yield evaluate(run, model, each.task, log=log, judged=judged, open_dataset=datasets.open)
            except TransientError as error:
                passing = passing or error
    if passing is not None:
        raise passing


class _Datasets:
    """Datasets of the tasks in use, by what a task reads; the least recently used goes first."""

    def __init__(self) -> None:
        self._held: dict[str, Dataset] = {}

    def open(self, task: Task, run_uri: str) -> Dataset:
        """As `task.open`. A patch set of a run is known by the run's URI."""
        key = f"{task.dataset_uri(run_uri)} {task.model_dump_json()}"
        dataset = self._held.pop(key, None) or task.open(run_uri)
        self._held[key] = dataset
        while len(self._held) > _DATASETS_HELD:
            del self._held[next(iter(self._held))]
        return dataset
