"""What a run would do: configuration, steps, objects read and written, figures. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eosin.config import RunConfig, difference, dump_config
from eosin.errors import EosinError, UserError
from eosin.index.overrides import load_overrides
from eosin.layout import IndexLayout, RunLayout
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


def plan_run(config: RunConfig, run_uri: str) -> RunPlan:
    """The plan of a run.

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
    figures, warnings = _figures(config)
    return RunPlan(
        run=run_uri,
        config=config.model_dump(mode="json"),
        config_yaml=dump_config(config),
        num_objects=len(sizes),
        total_bytes=sum(sizes),
        steps=_steps(config, run_uri),
        figures=figures,
        warnings=(*begun_otherwise, *warnings),
    )


def _steps(config: RunConfig, run: str) -> tuple[StepPlan, ...]:
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


def _figures(config: RunConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Figures of training and patching; what this image cannot work out becomes a warning."""
    figures: dict[str, Any] = {}
    warnings: list[str] = []
    try:
        from eosin.training.check import check_training

        figures |= check_training(config)
    except ImportError as error:
        warnings.append(f"no figures of training in this image: {error}")
    try:
        from eosin.index.snapshot import open_snapshot
        from eosin.patches.check import check_patches

        figures |= check_patches(config, open_snapshot(config.index.uri))
    except EosinError as error:
        warnings.append(f"no figures of patching yet: {error.message}")
    return figures, tuple(warnings)


def _begun_otherwise(config: RunConfig, run_uri: str) -> tuple[str, ...]:
    if not open_store(run_uri).exists(RunLayout.CONFIG):
        return ()
    begun = load_run(run_uri)
    lines = difference(begun.identity(), config.identity())
    return tuple(f"the run was begun with another configuration: {line}" for line in lines)
