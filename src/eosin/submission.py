"""Pipelines asked for by a person: checked, then run on this machine or handed to Kubeflow."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin import steps
from eosin.config import RunConfig, load_config
from eosin.dry_run import RunPlan, TilesPlan, plan_run, plan_tiles_pipeline
from eosin.errors import EosinError, UserError
from eosin.kubeflow import parameters
from eosin.kubeflow.client import kubeflow_client
from eosin.kubeflow.local_run import run_pipeline
from eosin.kubeflow.runs import Schedule, ScheduleSpec, Submitted, ensure_schedule, six_fields, submit_run
from eosin.kubeflow.task_pods import placed, read_pods
from eosin.layout import RANDOM_INIT
from eosin.preflight import (
    EVALUATE_LIBRARIES,
    RUNNER_LIBRARIES,
    TRAIN_LIBRARIES,
    check_models,
    check_plan,
    check_pools_in_reach,
    check_teacher,
    check_trainable_apart,
    require_libraries,
)
from eosin.recipes import ConfigSource, load_recipe
from eosin.records import KubeflowRun
from eosin.run_control import note_submission
from eosin.runs import dated
from eosin.status import RunStatus, run_status
from eosin.storage import Store, join_uri, open_store
from eosin.study import study_of

_URIS = ("run", "slides", "index", "registry", "teacher", "patches")
_RECIPES = "recipes"
_TRAINING = ("pretrain", "retrain", "scaling_study")
_OF_TILES = ("decode", "embed")
_MAX_NAME = 63


@dataclass(frozen=True)
class PipelineRequest:
    """A pipeline as a person asks for it: what its options say, and which Kubeflow it is for."""

    pipeline: str
    """One of eosin's by name, or a compiled file by path."""
    run: str
    """The run's URI."""
    recipe: str = ""
    slides: str = ""
    index: str = ""
    settings: Sequence[str] = ()
    """Overrides, `section.key=value`."""
    teacher: str = ""
    params: Sequence[str] = ()
    """`NAME=VALUE` of any other parameter."""
    pods: Sequence[str] = ()
    """`TASK.KEY=VALUE`."""
    pods_file: Path | None = None
    host: str = ""
    """Address of the Kubeflow Pipelines API."""
    namespace: str = ""
    experiment: str = "eosin"
    service_account: str = ""

    def values(self) -> dict[str, Any]:
        """What the options say of the pipeline's parameters, by their names; empty where nothing is said."""
        return {
            "run": self.run, "recipe": self.recipe, "slides": self.slides, "index": self.index,
            "settings": list(self.settings), "teacher": self.teacher,
        }  # fmt: skip


@dataclass(frozen=True)
class PublishedTiles:
    """The folder into which patches or features went without a run."""

    run: str

    def __str__(self) -> str:
        return f"published: {self.run}"


def run_locally(request: PipelineRequest) -> RunStatus | PublishedTiles:
    """Run one of eosin's pipelines on this machine to its end, showing progress; the same again continues it.

    Raises what a step would refuse after others have run, and the error of the step that failed.
    """
    if request.pipeline in _OF_TILES:
        run_pipeline(*_arguments_here(request))
        return PublishedTiles(request.run)
    require_libraries((*RUNNER_LIBRARIES, *TRAIN_LIBRARIES, *EVALUATE_LIBRARIES))
    path, arguments = _arguments_here(request)
    config = _config_here(request.pipeline, arguments)
    planned = check_plan(arguments["run"], config)
    if planned.changes:
        print(f"▸ {planned}", file=sys.stderr)
    if request.pipeline == "evaluate":
        check_teacher(request.teacher)
    else:
        check_trainable_apart(planned.config)
    here = {
        "backend": "local",
        "num_index_shards": config.index.num_shards,
        "num_decode_shards": config.patches.heldout.num_shards,
        "num_evaluation_shards": 1,
    }
    names = parameters.takes(path)
    run_pipeline(path, {name: value for name, value in here.items() if name in names} | arguments)
    return run_status(arguments["run"])


def plan_request(request: PipelineRequest, *, here: bool) -> RunPlan | TilesPlan:
    """What one of eosin's pipelines would do, on this machine (`here`) or on a cluster; writes nothing."""
    _, arguments = _arguments_here(request)
    if request.pipeline in _OF_TILES:
        return plan_tiles_pipeline(request.pipeline, arguments)
    config = _config_here(request.pipeline, arguments)
    return plan_run(config, arguments["run"], pipeline=request.pipeline, arguments=arguments, here=here)


def _arguments_here(request: PipelineRequest) -> tuple[Path, dict[str, Any]]:
    """The compiled pipeline and its arguments without images. An empty recipe is said: the run's own."""
    if (request.pipeline == "evaluate") != bool(request.teacher):
        raise UserError("--pipeline evaluate and --teacher go together", hint="give both, or neither")
    path = parameters.compiled_pipeline(request.pipeline)
    names = parameters.takes(path)
    given = {name: value for name, value in request.values().items() if value or name in names}
    if request.pipeline not in _OF_TILES:
        given["run"] = dated(request.run)
    return path, parameters.arguments_of(path, parameters.images_of_here(path) | given, request.params)


def _config_here(pipeline: str, arguments: Mapping[str, Any]) -> RunConfig:
    source = ConfigSource(*(arguments[key] for key in ("recipe", "settings", "slides", "index")))
    return steps.config_of_pipeline(pipeline, arguments, source)


def submit(request: PipelineRequest) -> tuple[Submitted, tuple[str, ...]]:
    """Submit to Kubeflow, unless the same is going there already; returns the run, and notes for a person."""
    with (
        checked_pipeline(request) as (path, checked),
        kubeflow_client(request.host, request.namespace) as client,
    ):
        made = submit_run(
            client, path, checked.arguments, experiment=request.experiment,
            service_account=request.service_account,
        )  # fmt: skip
    place = KubeflowRun(
        namespace=request.namespace, run_id=made.run_id, pipeline=request.pipeline, host=request.host
    )
    return made, (*checked.notes, note_submission(checked.arguments["run"], place))


def schedule(
    request: PipelineRequest, name: str, cron: str, *, enabled: bool
) -> tuple[Schedule, str, tuple[str, ...]]:
    """Have the pipeline recur by `cron` under `name`; returns the schedule, what was done, and notes.

    Raises `UserError` for a name or cron that Kubeflow does not take, and where all runs would be one.
    """
    if not 0 < len(name) <= _MAX_NAME:
        raise UserError(f"a schedule's name has 1 to {_MAX_NAME} characters, not {len(name)}")
    if "registry" not in parameters.takes(parameters.compiled_pipeline(request.pipeline)):
        raise UserError(
            f"pipeline {request.pipeline} cannot recur: its run has one name",
            hint="retrain can: it names each run after its day",
        )
    if "{date}" not in request.run:
        raise UserError(
            f"every run of the schedule would be {request.run}",
            hint="put {date} in it: s3://bucket/runs/weekly-{date}",
        )
    with checked_pipeline(request) as (path, checked):
        spec = ScheduleSpec(name, path, six_fields(cron), checked.arguments, enabled, request.service_account)
        with kubeflow_client(request.host, request.namespace) as client:
            return *ensure_schedule(client, request.experiment, spec), checked.notes


@dataclass(frozen=True)
class CheckedSubmission:
    """`arguments` as the cluster is given them; `notes`: what could not be looked at from here, and why."""

    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()


@contextmanager
def checked_pipeline(
    request: PipelineRequest, *, publish: bool = True
) -> Iterator[tuple[Path, CheckedSubmission]]:
    """The compiled pipeline with the pods asked for written into it, and its arguments as they are checked.

    `publish`: as `check_submission` has it. Raises `UserError` for what a cluster or a step would refuse.
    """
    path = parameters.compiled_pipeline(request.pipeline)
    given = {name: value or None for name, value in request.values().items()}
    checked = check_submission(
        parameters.own_pipeline(path), parameters.arguments_of(path, given, request.params),
        recipe=parameters.default_of(path, "recipe") or "", namespace=request.namespace, publish=publish,
    )  # fmt: skip
    with placed(path, read_pods(request.pods, request.pods_file)) as compiled:
        parameters.require_acceptable_size(compiled, checked.arguments)
        yield compiled, checked


def check_submission(
    pipeline: str,
    arguments: Mapping[str, Any],
    *,
    recipe: str = "",
    namespace: str = "",
    publish: bool = True,
) -> CheckedSubmission:
    """Refuse what the pipeline's own steps would, and put a recipe file beside the run where `publish`.

    `pipeline` is one of eosin's own by name, else one of the user's; `arguments` by the names of its
    parameters; `recipe`: its default where none is given; `namespace`: where the run goes, empty: not known.
    Bucket and cluster are looked into where this machine reaches them; where not, a note says so and the
    first step looks. Raises `UserError` for the rest: paths of this machine, recipes, settings, values of a
    study, pools on which training cannot work.
    """
    given = dict(arguments)
    _refuse_local_paths(given)
    given["recipe"] = given.get("recipe") or recipe
    travels = _is_file(given["recipe"])
    source = ConfigSource(
        given["recipe"], given.get("settings") or (), given.get("slides", ""), given.get("index", "")
    )
    config = None
    if source.recipe and "://" not in source.recipe:
        config = _check_text(pipeline, given, source)
    looked, notes = _look(pipeline, given, source)
    if pipeline in _TRAINING and given.get("backend", "jobset") == "jobset":
        notes += _check_pools(str(given["run"]), looked or config, namespace)
    if travels and publish:
        given["recipe"] = _upload(given["recipe"], str(given["run"]))
    if not arguments.get("recipe"):
        del given["recipe"]
    return CheckedSubmission(given, tuple(notes))


def _check_text(pipeline: str, given: Mapping[str, Any], source: ConfigSource) -> RunConfig:
    """What is wrong with a recipe and its overrides needs no bucket to be seen."""
    text, name = load_recipe(source.recipe)
    config = load_config(text, source=name, overrides=source.overrides())
    _refuse_local_uris(config)
    if not str(config.slides) and not config.index.uri and pipeline != "retrain":
        raise UserError("no slides named", hint="give their folder: --slides s3://bucket/prefix")
    if pipeline == "scaling_study":
        study_of(str(given["run"]), config, given.get("vary", "slides"), given.get("values", ()))
    return config


def _check_pools(run: str, config: RunConfig | None, namespace: str) -> list[str]:
    """Whether the pools, those that the cluster presets where the run leaves them open, can train it."""
    if config is None:  # it is in the bucket, which could not be looked into
        return []
    note = check_pools_in_reach(run, config, namespace)[1]
    return [note] if note else []


def _look(
    pipeline: str, given: Mapping[str, Any], source: ConfigSource
) -> tuple[RunConfig | None, list[str]]:
    """Check what needs the bucket; returns the configuration, and why it could not be looked into."""
    run = str(given["run"])
    try:
        for uri in (run, source.slides, str(given.get("registry", ""))):
            if uri:
                next(iter(open_store(uri).list()), None)
    except EosinError as error:
        return None, [f"note: not looked at from here, the first step does: {error.message}"]
    config = _resolved(pipeline, given, source)
    if config is None:
        return None, []
    _refuse_local_uris(config)
    if "{date}" not in run and pipeline != "retrain":
        check_plan(run, config)
    check_models(config)
    if pipeline == "evaluate":
        check_teacher(str(given.get("teacher", "")))
    return config, []


def _resolved(pipeline: str, given: Mapping[str, Any], source: ConfigSource) -> RunConfig | None:
    if pipeline in _OF_TILES:
        patches, num_shards = str(given.get("patches", "")), int(given.get("num_shards", 1))
        steps.plan_tiles(str(given["run"]), num_shards, source.index, patches)
        model = str(given.get("model", "timm:"))
        if not model.startswith("timm:"):
            check_teacher(model.removesuffix("/model.safetensors"))
    if pipeline not in ("evaluate", *_TRAINING):
        return None  # a pipeline of the user's own
    return steps.config_of_pipeline(pipeline, given, source)


def _refuse_local_paths(given: Mapping[str, Any]) -> None:
    for name in (*_URIS, "model"):
        value = str(given.get(name) or "")
        value = value.removeprefix("timm:").rpartition("@")[2] if value.startswith("timm:") else value
        if name == "model" and "/" not in value.partition("hf-hub:")[0]:
            continue  # a network's name
        if value and not str(value).startswith("s3://"):
            raise _not_in_s3(name, str(value))


def _refuse_local_uris(config: RunConfig) -> None:
    for key, uri in _uris(config):
        if uri and not uri.startswith("s3://"):
            raise _not_in_s3(key, uri)


def _uris(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "slides.uri", config.slides.uri
    for source in config.slides.sources:
        yield f"source {source.name}", source.uri or source.manifest or source.gdc
        yield f"bucket of source {source.name}", source.bucket
    yield "slides.overrides", config.slides.overrides or ""
    yield "slides.contours", config.slides.contours or ""
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
