"""Plan of an evaluation: which models are judged on which tasks, shared out over shards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from shlex import quote

from eosin.config import RunConfig
from eosin.errors import TransientError, UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.evaluate import evaluate, find_judged_model
from eosin.evaluation.task import Task
from eosin.layout import TEACHER_CARD, RunLayout, step_of
from eosin.observability import RunLog
from eosin.records import MetricRecord, TrainingDone, load_record
from eosin.runs import exported_models, load_run
from eosin.storage import Store, join_uri, open_store


def list_evaluations(run_uri: str) -> list[dict[str, str]]:
    """Every pair {"model": …, "task": …} the configuration asks for: baselines, then teachers by step.

    Raises `UserError` where no run is there, or nothing is exported and no baseline asked for.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    models = models_to_judge(run_uri, config, store)
    if not models:
        raise UserError(
            f"run {run_uri} has exported no teacher yet", hint=f"run `eosin train {quote(run_uri)}` first"
        )
    return [{"model": model, "task": task.name} for model in models for task in config.evaluate.tasks]


def list_evaluations_of(run_uri: str, teacher: str) -> list[dict[str, str]]:
    """Every pair of the teacher at `teacher`, and of the run's baselines, with a task of the run.

    `teacher` is the folder of an export, or a run: then its newest teacher. Raises `UserError` where no
    run or no teacher is there.
    """
    config = load_run(run_uri)
    models = dict.fromkeys([*config.evaluate.baselines, find_teacher(teacher)])
    return [{"model": model, "task": task.name} for model in models for task in config.evaluate.tasks]


def find_teacher(uri: str) -> str:
    """URI of a teacher's folder: `uri` itself, or that of the newest teacher of the run at `uri`.

    Raises `UserError` where neither is there.
    """
    folder, store = join_uri(uri).rstrip("/"), open_store(uri)
    if store.exists(TEACHER_CARD):
        return folder
    teachers = _teachers(store)
    if not teachers:
        raise UserError(
            f"no teacher at {uri}: neither {TEACHER_CARD} nor an exported checkpoint is there",
            hint="name the folder of an export, s3://bucket/runs/NAME/teachers/step-00000100, or its run",
        )
    return join_uri(folder, RunLayout.teacher(teachers[-1])).rstrip("/")


def models_to_judge(run_uri: str, config: RunConfig, store: Store) -> list[str]:
    """Names of the baselines and of the exported teachers that `evaluate.checkpoints` asks for."""
    teachers = _teachers(store)
    if config.evaluate.checkpoints == "last":
        teachers = teachers[-1:]
    return [*config.evaluate.baselines, *teachers]


def _teachers(store: Store) -> list[str]:
    """Those that training says it exported; while it still runs, those that are there."""
    done = load_record(TrainingDone, store, RunLayout.TRAINING_DONE)
    if done is None:
        return [name for name in exported_models(store) if step_of(name) is not None]
    return list(done.models)


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
