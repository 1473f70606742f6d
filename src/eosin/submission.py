"""Checks of a pipeline's arguments before it is submitted, and a recipe file that goes along."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eosin import steps
from eosin.config import RunConfig, load_config
from eosin.errors import EosinError, UserError
from eosin.layout import RANDOM_INIT
from eosin.preflight import check_models, check_plan, check_teacher, check_trainable
from eosin.recipes import ConfigSource, load_recipe
from eosin.storage import Store, join_uri, open_store
from eosin.study import study_of

_URIS = ("run", "slides", "index", "registry", "teacher")
_RECIPES = "recipes"


@dataclass(frozen=True)
class CheckedSubmission:
    """`arguments` as the cluster is given them; `notes`: what could not be looked at from here, and why."""

    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()


def check_submission(pipeline: str, arguments: Mapping[str, Any], *, recipe: str = "") -> CheckedSubmission:
    """Refuse what the pipeline's own steps would, and put a recipe file beside the run.

    `arguments` by the names of the pipeline's parameters; `recipe`: its default where none is given. The
    bucket is looked into where this machine reaches it; where not, a note says so and the cluster's first
    step looks. Raises `UserError` for the rest: paths of this machine, recipes, settings, values of a study.
    """
    given = dict(arguments)
    _refuse_local_paths(given)
    given["recipe"] = given.get("recipe") or recipe
    travels = _is_file(given["recipe"])
    source = ConfigSource(
        given["recipe"], given.get("settings") or (), given.get("slides", ""), given.get("index", "")
    )
    if source.recipe and "://" not in source.recipe:
        _check_text(pipeline, given, source)
    notes = _look(pipeline, given, source)
    if travels:
        given["recipe"] = _upload(given["recipe"], str(given["run"]))
    if not arguments.get("recipe"):
        del given["recipe"]
    return CheckedSubmission(given, tuple(notes))


def _check_text(pipeline: str, given: Mapping[str, Any], source: ConfigSource) -> None:
    """What is wrong with a recipe and its overrides needs no bucket to be seen."""
    text, name = load_recipe(source.recipe)
    config = load_config(text, source=name, overrides=source.overrides())
    _refuse_local_uris(config)
    if not config.slides.uri and not config.index.uri and pipeline != "retrain":
        raise UserError("no slides named", hint="give their folder: --slides s3://bucket/prefix")
    if pipeline == "scaling_study":
        study_of(str(given["run"]), config, given.get("vary", "slides"), given.get("values", ()))


def _look(pipeline: str, given: Mapping[str, Any], source: ConfigSource) -> list[str]:
    """Check what needs the bucket; returns why it could not be looked into."""
    run = str(given["run"])
    try:
        for uri in (run, source.slides, str(given.get("registry", ""))):
            if uri:
                next(iter(open_store(uri).list()), None)
    except EosinError as error:
        return [f"note: not looked at from here, the first step does: {error.message}"]
    config = _resolved(pipeline, given, source)
    if config is None:
        return []
    _refuse_local_uris(config)
    if "{date}" not in run and pipeline != "retrain":
        check_plan(run, config)
    check_models(config)
    if pipeline == "evaluate":
        check_teacher(str(given.get("teacher", "")))
    elif find_spec("torch") is not None:
        check_trainable(config, here=False)
    return []


def _resolved(pipeline: str, given: Mapping[str, Any], source: ConfigSource) -> RunConfig | None:
    run = str(given["run"])
    if pipeline == "retrain":
        return steps.retrain_config(run, str(given["registry"]), str(given["name"]), source)[0]
    if pipeline not in ("pretrain", "evaluate", "scaling_study"):
        return None  # a pipeline of the user's own
    config = steps.resolve_config(source, of_run=run)
    if pipeline == "scaling_study":
        study_of(run, config, given.get("vary", "slides"), given.get("values", ()))
    return config


def _refuse_local_paths(given: Mapping[str, Any]) -> None:
    for name in _URIS:
        value = given.get(name)
        if value and not str(value).startswith("s3://"):
            raise _not_in_s3(name, str(value))


def _refuse_local_uris(config: RunConfig) -> None:
    for key, uri in _uris(config):
        if uri and not uri.startswith("s3://"):
            raise _not_in_s3(key, uri)


def _uris(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "slides.uri", config.slides.uri
    yield "slides.overrides", config.slides.overrides or ""
    yield "index.uri", config.index.uri
    yield "index.tissue.onnx", config.index.tissue.onnx
    if config.patches.source != "slides":
        yield "patches.source", config.patches.source
    init = config.model.init.removeprefix("run:")
    if init != "random" and not init.startswith("timm:"):
        yield "model.init", init
    for task in config.evaluate.tasks:
        yield f"dataset of task {task.name}", getattr(task, "dataset", "")
    for name in config.evaluate.baselines:
        if name != RANDOM_INIT and not name.startswith("timm:"):
            yield "evaluate.baselines", name


def _not_in_s3(name: str, value: str) -> UserError:
    return UserError(
        f"{name} {value} is of this machine, and pods of a cluster do not see it",
        hint="put it into the bucket and name it s3://…; on this machine: eosin run --local",
    )


def _is_file(recipe: str) -> bool:
    """Whether it is a file of this machine. Raises `UserError` as `load_recipe` for what is nothing."""
    if not recipe or "://" in recipe:
        return False
    _, source = load_recipe(recipe)
    return not source.startswith("recipe ")


def _upload(recipe: str, run: str) -> str:
    """Publish the file in the folder `recipes` beside the run, named after what it says; returns its URI."""
    text, _ = load_recipe(recipe)
    parent = run.rstrip("/").rpartition("/")[0]
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    key = f"{Path(recipe).stem}-{digest}.yaml"
    try:
        store: Store = open_store(join_uri(parent, _RECIPES))
        store.put(key, text.encode())
    except EosinError as error:
        raise UserError(
            f"recipe file {recipe} travels through the bucket, and it cannot be put there: {error.message}",
            hint=error.hint or "put it there yourself and name its s3:// URI",
        ) from error
    return join_uri(store.uri, key)
