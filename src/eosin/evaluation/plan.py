"""Evaluation plan: which models are judged on which tasks."""

from __future__ import annotations

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.evaluation.judged_model import exported_models
from eosin.layout import TEACHER_CARD, RunLayout, step_of
from eosin.records import TrainingDone, load_record
from eosin.runs import load_run
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
            f"run {run_uri} has exported no teacher yet", hint=f"run `eosin train {run_uri}` first"
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
    teachers = _teachers(uri, store)
    if not teachers:
        raise UserError(
            f"no teacher at {uri}: neither {TEACHER_CARD} nor an exported checkpoint is there",
            hint="name the folder of an export, s3://bucket/runs/NAME/teachers/step-00000100, or its run",
        )
    return join_uri(folder, RunLayout.teacher(teachers[-1])).rstrip("/")


def models_to_judge(run_uri: str, config: RunConfig, store: Store) -> list[str]:
    """Names of the baselines and of the exported teachers that `evaluate.checkpoints` asks for."""
    teachers = _teachers(run_uri, store)
    if config.evaluate.checkpoints == "last":
        teachers = teachers[-1:]
    return [*config.evaluate.baselines, *teachers]


def _teachers(run_uri: str, store: Store) -> list[str]:
    """Those that training says it exported; while it still runs, those that are there."""
    done = load_record(TrainingDone, store, RunLayout.TRAINING_DONE)
    if done is None:
        return [name for name in exported_models(store) if step_of(name) is not None]
    return list(done.models)
