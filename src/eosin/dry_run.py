"""Dry run: configuration, steps, objects read and written, figures of a run. Writes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eosin.config import RunConfig, dump_config
from eosin.errors import EosinError, MissingDependency
from eosin.index.sources import SourceFigures, figures_of
from eosin.layout import IndexLayout, RegistryLayout, RunLayout
from eosin.preflight import (
    EVALUATE_LIBRARIES,
    check_models,
    check_plan,
    check_pools_in_reach,
    check_teacher,
    check_trainable,
    compare_pools,
    require_libraries,
    require_place,
)
from eosin.storage import join_uri, open_store
from eosin.words import counted

if TYPE_CHECKING:
    from eosin.evaluation.embed_index import EmbedRequest


@dataclass(frozen=True)
class StepPlan:
    """One step of a run: URIs that it reads and writes."""

    step: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class RunPlan:
    """All that `--dry-run` shows of a run."""

    run: str
    config: dict[str, Any]
    config_yaml: str
    sources: tuple[SourceFigures, ...]
    steps: tuple[StepPlan, ...]
    begun: str = ""
    """What is at the run's place, and what planning it would change."""
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = ["# resolved configuration", self.config_yaml, f"# {self.begun}", "# steps"]
        for step in self.steps:
            lines.append(f"{step.step}" + (f"  ({step.note})" if step.note else ""))
            lines += [f"    reads   {uri}" for uri in step.reads]
            lines += [f"    writes  {uri}" for uri in step.writes]
        lines += ["", "# figures", *map(str, self.sources)]
        lines += [f"{name}: {value}" for name, value in self.figures.items()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def plan_run(
    config: RunConfig,
    run_uri: str,
    *,
    pipeline: str = "pretrain",
    arguments: Mapping[str, Any] | None = None,
    here: bool = False,
) -> RunPlan:
    """The plan of a run of `pipeline`, whose `arguments` name what is not in the configuration.

    `here`: on this machine, whose memory is then looked at, and not on the nodes of `cluster.pools`. Raises
    `UserError` where anything makes the run impossible: configuration, slides, overrides, the models it
    begins with and is judged beside, memory, or another run at its place.
    """
    arguments = arguments or {}
    planned = check_plan(run_uri, config)
    config = planned.config
    check_models(config)
    if pipeline == "evaluate":
        check_teacher(str(arguments.get("teacher", "")))
    trains, placed, unseen = pipeline != "evaluate", config, ""
    on_cluster = trains and not here and run_uri.startswith("s3://")
    if on_cluster and arguments.get("backend", "jobset") == "jobset":
        placed, unseen = check_pools_in_reach(run_uri, config)
    figures, warnings = _figures(placed, run_uri, trains=trains, here=here)
    return RunPlan(
        run=run_uri,
        config=config.model_dump(mode="json"),
        config_yaml=dump_config(config),
        sources=tuple(figures_of(config.slides)),
        steps=_steps(config, run_uri, pipeline, arguments),
        begun=str(planned),
        figures=figures,
        warnings=(*warnings, *filter(None, [unseen]), *_missing_datasets(config)),
    )


@dataclass(frozen=True)
class TilesPlan:
    """What decoding a patch set, or embedding one or an index, would read and write."""

    reads: tuple[str, ...]
    writes: str
    figures: dict[str, Any]
    """Of all shards together."""

    def __str__(self) -> str:
        lines = [*(f"reads   {uri}" for uri in self.reads), f"writes  {self.writes}"]
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.figures.items())])


def plan_decoding(
    run_uri: str, index_uri: str, name: str, settings: Sequence[str], slides: Sequence[str]
) -> TilesPlan:
    """Of a set of a run or, where one is named, of an index. Raises what decoding would refuse."""
    from eosin.patches.check import check_decoding
    from eosin.patches.sets.set_spec import open_decoding, open_decoding_of_index

    require_place(run_uri)
    job = (
        open_decoding_of_index(index_uri, run_uri, name, 0, 1, settings, slides)
        if index_uri
        else open_decoding(run_uri, name, 0, 1, settings, slides)
    )
    reads = (job.snapshot.store.uri, job.snapshot.manifest.slides_uri)
    return TilesPlan(reads, join_uri(run_uri, RunLayout.patch_set(name)), check_decoding(job))


def plan_embedding(request: "EmbedRequest") -> TilesPlan:
    """Raises what embedding would refuse; the model is loaded for it."""
    from eosin.evaluation.embed_index import check_embedding

    require_libraries(EVALUATE_LIBRARIES)
    require_place(request.out_uri)
    figures = check_embedding(request)
    reads = filter(None, (request.model, request.index_uri, request.patches_uri))
    return TilesPlan(tuple(reads), request.out_uri, figures)


def plan_tiles_pipeline(pipeline: str, arguments: Mapping[str, Any]) -> TilesPlan:
    """Of the pipeline decode or embed, by the arguments it is given."""
    run, index, settings = arguments["run"], arguments.get("index", ""), arguments.get("settings", ())
    slides = arguments.get("slide_patterns", ())
    if pipeline == "decode":
        return plan_decoding(run, index, arguments.get("name", "grid"), settings, slides)
    from eosin.evaluation.embed_index import EmbedRequest

    others = {name: arguments[name] for name in ("format", "read_out") if name in arguments}
    return plan_embedding(
        EmbedRequest(arguments["model"], run, index, arguments.get("patches", ""), tuple(slides) or ("*",),
                     settings=tuple(settings), **others)
    )  # fmt: skip


def _missing_datasets(config: RunConfig) -> Iterator[str]:
    """Their tasks would end as failed records; the run goes on without them."""
    for task in config.evaluate.tasks:
        uri = getattr(task, "dataset", "")
        if uri and not _is_there(uri):
            yield f"task {task.name} will fail: there is nothing at {uri}"


def _is_there(uri: str) -> bool:
    try:
        if next(iter(open_store(uri).list()), None) is not None:
            return True
        folder, _, key = uri.rstrip("/").rpartition("/")
        return open_store(folder or ".").exists(key)
    except EosinError:
        return False


def _steps(config: RunConfig, run: str, pipeline: str, arguments: Mapping[str, Any]) -> tuple[StepPlan, ...]:
    """The steps of `pipeline`: those of pretraining, less what it leaves out, with its own between."""
    steps = {step.step: step for step in _pretrain_steps(config, run)}
    if pipeline == "evaluate":
        teacher = str(arguments.get("teacher", ""))
        judged = steps["evaluate"]
        baselines = ", ".join(config.evaluate.baselines)
        reads = (teacher, *(uri for uri in judged.reads if uri != join_uri(run, RunLayout.TEACHERS)))
        note = f"{teacher}" + (f", baselines {baselines}" if baselines else "")
        steps["evaluate"] = StepPlan("evaluate", reads, judged.writes, note)
        del steps["train"]
    if pipeline == "retrain":
        return _retrain_steps(steps, config, arguments)
    return tuple(steps.values())


def _retrain_steps(
    steps: dict[str, StepPlan], config: RunConfig, arguments: Mapping[str, Any]
) -> tuple[StepPlan, ...]:
    registry = join_uri(str(arguments["registry"]), RegistryLayout.entry(str(arguments["name"])))
    enough = int(arguments.get("min_new_slides", 1))
    gate = StepPlan(
        "gate", (config.index.uri, registry), (), f"goes on with {counted(enough, 'new slide')} or more"
    )
    plan = StepPlan("plan", (registry,), steps["plan"].writes, f"begins with {config.model.init}")
    promote = StepPlan("promote", (registry, *steps["evaluate"].writes[:1]), (registry,))
    rest = (steps[name] for name in ("decode", "train", "evaluate", "summarize"))
    return (plan, steps["index"], gate, *rest, promote)


def _pretrain_steps(config: RunConfig, run: str) -> tuple[StepPlan, ...]:
    index, slides = config.index.uri, str(config.slides)
    evaluate = config.evaluate
    tasks = ", ".join(task.name for task in evaluate.tasks)
    datasets = tuple(sorted({task.dataset for task in evaluate.tasks if hasattr(task, "dataset")}))
    overrides = tuple(filter(None, (config.slides.overrides, config.slides.contours)))
    num_exports = -(-config.train.num_steps // config.train.export_every_steps)

    def at(key: str) -> str:
        return join_uri(run, key)

    return (
        StepPlan("plan", (), (at(RunLayout.CONFIG),)),
        StepPlan(
            "index",
            (slides, *overrides),
            (join_uri(index, IndexLayout.SNAPSHOTS), at(RunLayout.INDEX_PIN)),
            f"{counted(config.index.num_shards, 'shard')}; slides by byte range",
        ),
        StepPlan("decode", (index, slides), (at(RunLayout.patch_set("heldout")),),
                 f"{config.patches.heldout.num_patches} held-out patches"),
        StepPlan(
            "train",
            (index, slides),
            (at(RunLayout.CHECKPOINTS), at(RunLayout.TEACHERS), at(RunLayout.TRAINING_DONE)),
            f"{counted(config.train.num_steps, 'step')} of {config.train.batch_size} patches, "
            f"{counted(num_exports, 'teacher')}",
        ),
        StepPlan(
            "evaluate",
            (at(RunLayout.TEACHERS), at(RunLayout.patch_set("heldout")), *datasets),
            (at(RunLayout.METRICS), at(RunLayout.EMBEDDINGS)),
            f"{evaluate.checkpoints} checkpoints, baselines {', '.join(evaluate.baselines)} × {tasks}",
        ),
        StepPlan("summarize", (at(RunLayout.METRICS), at(RunLayout.LOGS)),
                 (at(RunLayout.SUMMARY_HTML), at(RunLayout.SUMMARY_MD), at(RunLayout.SUMMARY_JSON))),
    )  # fmt: skip


def _figures(
    config: RunConfig, run_uri: str, *, trains: bool, here: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Figures of training and patching; what this image cannot work out becomes a warning."""
    figures: dict[str, Any] = {}
    warnings: list[str] = []
    try:
        if trains:
            from eosin.training.check import warm_start_advice

            figures |= check_trainable(config, here=here) | compare_pools(config, run_uri)
            warnings += filter(None, [warm_start_advice(config)])
    except (ImportError, MissingDependency) as error:
        warnings.append(f"no figures of training in this image: {error}")
    try:
        from eosin.index.snapshot import open_snapshot

        snapshot = open_snapshot(config.index.uri)
    except EosinError as error:
        return figures, (*warnings, f"no figures of patching yet: {error.message}")
    try:
        from eosin.patches.check import check_patches
    except ImportError as error:
        return figures, (*warnings, f"no figures of patching in this image: {error}")
    return figures | check_patches(config, snapshot), tuple(warnings)
