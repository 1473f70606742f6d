"""A study: one configuration, one key of it varied, one run for each value; all judged on the same data."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from eosin.config import RunConfig, with_overrides
from eosin.config.patches import HELD_OUT
from eosin.errors import UserError
from eosin.layout import RANDOM_INIT, TEACHER_WEIGHTS, RunLayout
from eosin.records import Study, Variant, update_record
from eosin.runs import has_trained, load_pin, load_study, pin_index, plan_config, prepare_run, resolve
from eosin.storage import join_uri, open_store
from eosin.words import repeated

_TIMM = "timm:"
_ALL = "all"
# A name of an axis, the key it stands for, and the values that are usual (of the paper's figures).
_AXES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "slides": ("patches.slide_fraction", (0.01, 0.1, 0.3, 1.0)),
    "patches": ("patches.num_distinct", (10, 100, 1000, 10_000, _ALL)),
    "init": ("model.init", ()),
    "magnifications": ("patches.mpp", ()),
    "method": ("train.method", ("dino", "dinov2")),
}


@dataclass(frozen=True)
class PlannedVariant:
    """A variant of a study and the whole configuration of its run."""

    record: Variant
    config: RunConfig


def plan_study(study_uri: str, config: RunConfig, vary: str, values: Sequence[Any] = ()) -> Study:
    """Publish the shared configuration, that of each variant, and what the study varies.

    Repeated with the same it is a no-op. Until something is trained it may be planned again as another.
    Raises `UserError` where a value is no value of the key, or the study was begun otherwise and trained.
    """
    study, planned = study_of(study_uri, resolve(config, study_uri), vary, values)
    plan_config(study_uri, config)
    _keep(study_uri, study)
    prepare_run(study_uri, config)
    for variant in planned:
        prepare_run(variant.record.run, variant.config)
    return study


def study_of(
    study_uri: str, config: RunConfig, vary: str, values: Sequence[Any] = ()
) -> tuple[Study, list[PlannedVariant]]:
    """The study and the configuration of each of its runs; publishes nothing.

    `config` is the resolved one of the study; `vary` is an axis by name (slides, patches, init,
    magnifications, method) or a `section.key`; no values: those usual for the axis.
    """
    key, usual = _axis(config, vary)
    values = [_meant(value) for value in values or usual]
    if len(values) < 2:
        raise UserError(f"a study of {key} needs two values or more", hint="--param 'values=[…]'")
    names = [_name(value) for value in values]
    if twice := repeated(names):
        raise UserError(f"two values of {key} are alike: {twice}")
    heldout = join_uri(study_uri, RunLayout.patch_set(HELD_OUT)).rstrip("/")
    planned: list[PlannedVariant] = []
    for name, value in zip(names, values, strict=True):
        changed = _variant_config(config, key, value, heldout)
        untrained = _untrained(changed)
        run = join_uri(study_uri, RunLayout.variant(name))
        record = Variant(name=name, value=value, run=run, untrained=untrained)
        planned.append(PlannedVariant(record, _with_baselines(changed, untrained, planned)))
    variants = tuple(each.record for each in planned)
    return Study(key=key, variants=variants, heldout=heldout), planned


def pin_variants(study_uri: str) -> list[str]:
    """Pin the study's snapshot to each of its runs; returns their URIs.

    Raises `UserError` where a run has pinned another one.
    """
    pin = load_pin(study_uri)
    runs = [variant.run for variant in load_study(study_uri).variants]
    for run in runs:
        if pin_index(run, pin) != pin:
            raise UserError(f"run {run} has pinned another snapshot than its study", hint="take a new study")
    return runs


def _axis(config: RunConfig, vary: str) -> tuple[str, tuple[Any, ...]]:
    if vary not in _AXES:
        if "." not in vary:
            raise UserError(
                f"a study cannot vary {vary!r}", hint=f"one of {', '.join(_AXES)}, or a section.key"
            )
        return vary, ()
    key, usual = _AXES[vary]
    if vary == "magnifications":
        usual = (*([mpp] for mpp in config.patches.mpp), list(config.patches.mpp))
    if vary == "init" and config.model.init != "random":
        usual = ("random", config.model.init)
    return key, usual


def _meant(value: Any) -> Any:
    """As it was meant: Kubeflow makes 10.0 of 10, and takes no null, for which `all` stands."""
    if isinstance(value, list):
        return [_meant(each) for each in value]
    if value == _ALL:
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _name(value: Any) -> str:
    """A value as a folder's name: 0.01, dinov2, 0.25-0.5-1.0, timm-vit_small_patch16_224.dino."""
    if value is None:
        return _ALL
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-60:] or "value"


def _variant_config(config: RunConfig, key: str, value: Any, heldout: str) -> RunConfig:
    changed = with_overrides(config, [f"{key}={json.dumps(value)}"], source="the study")
    shared = [
        task.model_copy(update={"patch_set": heldout}) if getattr(task, "patch_set", "") == HELD_OUT else task
        for task in changed.evaluate.tasks
    ]
    evaluate = changed.evaluate.model_copy(update={"tasks": tuple(shared)})
    return changed.model_copy(update={"evaluate": evaluate})


def _untrained(config: RunConfig) -> str:
    init = config.model.init
    if init == "random":
        return RANDOM_INIT
    return init if init.startswith(_TIMM) else init.removesuffix(f"/{TEACHER_WEIGHTS}")


def _with_baselines(config: RunConfig, untrained: str, before: Sequence[PlannedVariant]) -> RunConfig:
    """Judge what the training begins with as well, and no baseline that a run before judges alike."""
    wanted = dict.fromkeys([*config.evaluate.baselines, untrained])
    judged = {
        name
        for each in before
        if _looks_alike(each.config, config)
        for name in each.config.evaluate.baselines
    }
    baselines = tuple(name for name in wanted if name not in judged)
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"baselines": baselines})})


def _looks_alike(first: RunConfig, second: RunConfig) -> bool:
    """Whether an untrained model is the same in both, whatever it is trained on and how."""
    sizes = {(each.augment.global_px, each.evaluate.img_px, each.seed) for each in (first, second)}
    models = [each.model.model_copy(update={"init": ""}) for each in (first, second)]
    return len(sizes) == 1 and models[0] == models[1]


def _keep(study_uri: str, study: Study) -> None:
    """Publish what the study varies; while nothing is trained, another plan gives way with its runs."""
    store = open_store(study_uri)

    def change(found: Study | None) -> Study | None:
        if found is not None and found != study and has_trained(store):
            names = ", ".join(variant.name for variant in found.variants)
            raise UserError(
                f"study {study_uri} was begun with {found.key}: {names}",
                hint=f"take another URI, or remove the study: eosin delete {quote(study_uri)}",
            )
        return None if found == study else study

    update_record(Study, store, RunLayout.STUDY, change)
    kept = tuple(f"{RunLayout.variant(variant.name)}/" for variant in study.variants)
    store.delete([info.key for info in store.list(RunLayout.VARIANTS) if not info.key.startswith(kept)])
