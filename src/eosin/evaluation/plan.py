"""Which models are judged on which tasks."""

from __future__ import annotations

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.evaluation.subject import exported_models
from eosin.layout import RunLayout, step_of
from eosin.records import TrainingDone
from eosin.runs import load_run
from eosin.storage import NotFound, Store, join_uri, open_store


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


def models_to_judge(run_uri: str, config: RunConfig, store: Store) -> list[str]:
    teachers = _teachers(run_uri, store)
    if config.evaluate.checkpoints == "last":
        teachers = teachers[-1:]
    return [*config.evaluate.baselines, *teachers]


def _teachers(run_uri: str, store: Store) -> list[str]:
    """Those that training says it exported; while it still runs, those that are there."""
    try:
        data = store.get(RunLayout.TRAINING_DONE)
    except NotFound:
        return [name for name in exported_models(store) if step_of(name) is not None]
    return list(TrainingDone.from_json(data, source=join_uri(run_uri, RunLayout.TRAINING_DONE)).models)
