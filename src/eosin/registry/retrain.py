"""Retraining: begin with the current model of a name, and only where there are new slides enough."""

from dataclasses import dataclass
from shlex import quote

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import TEACHER_CARD, TEACHER_WEIGHTS, RunLayout
from eosin.observability import RunLog
from eosin.records import RetrainBase, TeacherCard, load_record, update_record
from eosin.registry.entries import read_entry
from eosin.runs import has_trained, load_pin
from eosin.storage import join_uri, open_store
from eosin.words import counted


@dataclass(frozen=True)
class Gate:
    """Whether a retraining goes on. `why` is a sentence for a person."""

    go: bool
    num_new_slides: int
    why: str


def find_base(registry_uri: str, name: str, run_uri: str) -> RetrainBase:
    """What the run set out from, or, where it is new or nothing is trained, the registry's current model.

    Raises `UserError` where the run has trained from another name or registry.
    """
    base = load_record(RetrainBase, open_store(run_uri), RunLayout.RETRAIN)
    if base is None:
        return _current(registry_uri, name)
    if (base.registry, base.name) == (join_uri(registry_uri), name):
        return base
    if has_trained(open_store(run_uri)):
        raise UserError(
            f"run {run_uri} retrains {base.name} of {base.registry}, not {name} of {registry_uri}",
            hint="take another run URI",
        )
    return _current(registry_uri, name)


def keep_base(run_uri: str, base: RetrainBase) -> RetrainBase:
    """Publish what the run sets out from; of the same name and registry, what is there already wins.

    Returns what stands there then. `base` is of `find_base`, which refuses to leave another one.
    """

    def change(found: RetrainBase | None) -> RetrainBase | None:
        same = found is not None and (found.registry, found.name) == (base.registry, base.name)
        return None if same else base

    return update_record(RetrainBase, open_store(run_uri), RunLayout.RETRAIN, change) or base


def warm_started(config: RunConfig, base: RetrainBase) -> RunConfig:
    """`config`, begun with the weights of `base` and judged beside it; as it is where there is no base.

    Raises `UserError` where the configuration's model is not of the same architecture.
    """
    if base.version is None:
        return config
    _require_same_model(config, base)
    teacher = base.teacher
    # What an earlier retraining was judged beside is history; random-init and strangers stay.
    entry = read_entry(base.registry, base.name)
    versions = {each.teacher for each in entry.versions} if entry else set()
    kept = [name for name in config.evaluate.baselines if name not in versions]
    model = config.model.model_copy(update={"init": join_uri(teacher, TEACHER_WEIGHTS)})
    evaluate = config.evaluate.model_copy(update={"baselines": (*kept, teacher)})
    return config.model_copy(update={"model": model, "evaluate": evaluate})


def judge_new_slides(run_uri: str, min_new_slides: int, *, log: RunLog) -> Gate:
    """Are there at least `min_new_slides` usable slides that the base was not trained on?

    A slide is new by its key and etags: one that was replaced counts, one that was indexed anew by a
    later eosin does not. Reads both snapshots' rows; the run must have pinned its own.
    """
    base = load_record(RetrainBase, open_store(run_uri), RunLayout.RETRAIN)
    if base is None:
        raise UserError(f"{run_uri} is no retraining: {RunLayout.RETRAIN} is not there")
    pin = load_pin(run_uri)
    now = _slides(open_snapshot(pin.index_uri, pin.snapshot_id))
    if base.version is None:
        gate = Gate(
            True, len(now), f"{base.name} has no model yet: {counted(len(now), 'slide')}, all of them new"
        )
    else:
        num_new = len(now - _slides(open_snapshot(base.index_uri, base.snapshot_id)))
        enough = num_new >= min_new_slides
        since = f"{num_new} of {len(now)} slides are new since version {base.version} of {base.name}"
        verdict = "training begins" if enough else f"fewer than {min_new_slides}: nothing to do"
        gate = Gate(enough, num_new, f"{since}; {verdict}")
    log.event("retrain-gate", go=gate.go, num_new_slides=gate.num_new_slides, why=gate.why)
    return gate


def _current(registry_uri: str, name: str) -> RetrainBase:
    entry = read_entry(registry_uri, name)
    if entry is None:
        return RetrainBase(registry=join_uri(registry_uri), name=name)
    model = entry.current_model
    card = load_record(TeacherCard, open_store(model.teacher), TEACHER_CARD)
    if card is not None and card.weights_sha256 != model.weights_sha256:
        raise UserError(
            f"{model.teacher} is not what was promoted as version {model.version} of {name}: other weights",
            hint=f"put it back, or `eosin registry rollback {quote(registry_uri)} {quote(name)}`",
        )
    return RetrainBase(
        registry=join_uri(registry_uri), name=name, version=model.version, run=model.run,
        teacher=model.teacher, index_uri=model.index_uri, snapshot_id=model.snapshot_id,
    )  # fmt: skip


def _require_same_model(config: RunConfig, base: RetrainBase) -> None:
    card = load_record(TeacherCard, open_store(base.teacher), TEACHER_CARD)
    if card is None:
        raise UserError(
            f"the current model of {base.name} is gone: {join_uri(base.teacher, TEACHER_CARD)} is not there",
            hint=f"`eosin registry rollback {quote(base.registry)} {quote(base.name)}` to one that is",
        )
    if card.arch != config.model.arch:
        raise UserError(
            f"the current model of {base.name} is a {card.arch}, the recipe says {config.model.arch}",
            hint="leave the recipe out to take the current model's, or give the new one a name of its own",
        )


def _slides(snapshot: Snapshot) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Usable slides: URI of the slide, and key and etag of each of its objects."""
    rows = (snapshot.rows[number] for number in snapshot.usable)
    return {
        (
            row.uri or join_uri(snapshot.slides_uri, row.slide),
            tuple((each.key, each.etag) for each in row.header.objects),
        )
        for row in rows
    }
