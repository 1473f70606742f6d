"""What a run would do: configuration, steps, objects read and written, figures. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eosin.cluster.placement import placement
from eosin.config import RunConfig, difference, dump_config
from eosin.errors import EosinError, UserError
from eosin.index.overrides import load_overrides
from eosin.layout import IndexLayout, RegistryLayout, RunLayout
from eosin.runs import load_run, resolve
from eosin.storage import join_uri, open_store


@dataclass(frozen=True)
class StepPlan:
    step: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class RunPlan:
    run: str
    config: dict[str, Any]
    config_yaml: str
    num_objects: int
    total_bytes: int
    steps: tuple[StepPlan, ...]
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = ["# resolved configuration", self.config_yaml, "# steps"]
        for step in self.steps:
            lines.append(f"{step.step}" + (f"  ({step.note})" if step.note else ""))
            lines += [f"    reads   {uri}" for uri in step.reads]
            lines += [f"    writes  {uri}" for uri in step.writes]
        lines += [
            "",
            "# figures",
            f"objects under slides.uri: {self.num_objects} ({self.total_bytes / 1e9:.3f} GB)",
        ]
        lines += [f"{name}: {value}" for name, value in self.figures.items()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def plan_run(
    config: RunConfig, run_uri: str, *, pipeline: str = "pretrain", arguments: Mapping[str, Any] | None = None
) -> RunPlan:
    """The plan of a run of `pipeline`, whose `arguments` name what is not in the configuration.

    Raises `UserError` where the configuration, the slides, their overrides or the run's place make it
    impossible.
    """
    config = resolve(config, run_uri)
    sizes = [info.size_bytes for info in open_store(config.slides.uri).list()]
    if not sizes:
        raise UserError(
            f"there is no object under {config.slides.uri}", hint="check the bucket and the prefix"
        )
    begun_otherwise = _begun_otherwise(config, run_uri)
    load_overrides(config.slides.overrides)
    trains = pipeline != "evaluate"
    figures, warnings = _figures(config, trains)
    return RunPlan(
        run=run_uri,
        config=config.model_dump(mode="json"),
        config_yaml=dump_config(config),
        num_objects=len(sizes),
        total_bytes=sum(sizes),
        steps=_steps(config, run_uri, pipeline, arguments or {}),
        figures=figures,
        warnings=(*begun_otherwise, *warnings),
    )


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
    enough = arguments.get("min_new_slides", 1)
    gate = StepPlan("gate", (config.index.uri, registry), (), f"goes on with {enough} new slides or more")
    plan = StepPlan("plan", (registry,), steps["plan"].writes, f"begins with {config.model.init}")
    promote = StepPlan("promote", (registry, *steps["evaluate"].writes[:1]), (registry,))
    rest = (steps[name] for name in ("decode", "train", "evaluate", "summarize"))
    return (plan, steps["index"], gate, *rest, promote)


def _pretrain_steps(config: RunConfig, run: str) -> tuple[StepPlan, ...]:
    index, slides = config.index.uri, config.slides.uri
    evaluate = config.evaluate
    tasks = ", ".join(task.name for task in evaluate.tasks)
    datasets = tuple(sorted({task.dataset for task in evaluate.tasks if hasattr(task, "dataset")}))
    overrides = (config.slides.overrides,) if config.slides.overrides else ()
    num_exports = -(-config.train.num_steps // config.train.export_every_steps)

    def at(key: str) -> str:
        return join_uri(run, key)

    return (
        StepPlan("plan", (), (at(RunLayout.CONFIG),)),
        StepPlan(
            "index",
            (slides, *overrides),
            (join_uri(index, IndexLayout.SNAPSHOTS), at(RunLayout.INDEX_PIN)),
            f"{config.index.num_shards} shards; slides by byte range",
        ),
        StepPlan("decode", (index, slides), (at(RunLayout.patch_set("heldout")),),
                 f"{config.patches.heldout.num_patches} held-out patches"),
        StepPlan(
            "train",
            (index, slides),
            (at(RunLayout.CHECKPOINTS), at(RunLayout.TEACHERS), at(RunLayout.TRAINING_DONE)),
            f"{config.train.num_steps} steps of {config.train.batch_size} patches, {num_exports} teachers",
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


def _figures(config: RunConfig, trains: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Figures of training and patching; what this image cannot work out becomes a warning."""
    figures: dict[str, Any] = {}
    warnings: list[str] = []
    try:
        from eosin.training.check import check_training

        figures |= check_training(config) | _placement(config) if trains else {}
    except ImportError as error:
        warnings.append(f"no figures of training in this image: {error}")
    try:
        from eosin.index.snapshot import open_snapshot
        from eosin.patches.check import check_patches

        figures |= check_patches(config, open_snapshot(config.index.uri))
    except EosinError as error:
        warnings.append(f"no figures of patching yet: {error.message}")
    return figures, tuple(warnings)


def _placement(config: RunConfig) -> dict[str, str]:
    """A line a node pool: what a JobSet would take, from the fewest nodes to the most."""
    return {f"pool {each.pool}": str(each) for each in placement(config)}


def _begun_otherwise(config: RunConfig, run_uri: str) -> tuple[str, ...]:
    if not open_store(run_uri).exists(RunLayout.CONFIG):
        return ()
    begun = load_run(run_uri)
    lines = difference(begun.identity(), config.identity())
    return tuple(f"the run was begun with another configuration: {line}" for line in lines)
