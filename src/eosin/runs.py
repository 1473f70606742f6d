"""The beginning of a run: its configuration, published and replaced, and the index snapshot it pins."""

import contextlib
import getpass
import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import metadata
from shlex import quote
from typing import Any

from eosin.config import RunConfig, difference, dump_config, load_config, with_overrides
from eosin.config.index import SlidesConfig, SourceConfig
from eosin.errors import MissingDependency, UserError
from eosin.layout import COMPLETE, IndexLayout, RunLayout, step_of
from eosin.records import (
    IndexPin,
    LeaseRecord,
    StepFailure,
    Study,
    TrainingDone,
    load_record,
    publish_once,
    update_object,
)
from eosin.storage import NotFound, Store, join_uri, open_store

# Sections that say nothing of which slides are read and which patches are drawn from them.
_NOT_OF_PATCHES = ("augment.", "cluster.", "description:", "evaluate.", "model.", "recipe:", "train.")


def dated(run_uri: str, day: date | None = None) -> str:
    """`run_uri` with `day` (today, UTC) as YYYY-MM-DD in the place of `{date}`."""
    return run_uri.replace("{date}", (day or datetime.now(UTC).date()).isoformat())


def resolve(config: RunConfig, run_uri: str) -> RunConfig:
    """`config` with whole URIs, and the index's filled in: one a folder of slides, beside the runs.

    `s3://bucket/runs/NAME` with slides in `s3://bucket/slides/tcga` gives
    `s3://bucket/indexes/tcga-1f0c…`, and `/home/me/run1` gives `/home/me/indexes/tcga-1f0c…`; the digits
    are of the whole slides URI.
    """
    slides_uri = join_uri(config.slides.uri) if config.slides.uri else ""
    sources = tuple(map(_resolved_source, config.slides.sources))
    slides = config.slides.model_copy(update={"uri": slides_uri, "sources": sources})
    index_uri = join_uri(config.index.uri or _beside_the_runs(run_uri, slides))
    require_apart(slides, index_uri, run_uri)
    index = config.index.model_copy(update={"uri": index_uri})
    patches = config.patches
    if patches.source != "slides":
        patches = patches.model_copy(update={"source": join_uri(patches.source)})
    if patches.curation is not None:
        curation = patches.curation.model_copy(update={"clusters": join_uri(patches.curation.clusters)})
        patches = patches.model_copy(update={"curation": curation})
    return config.model_copy(update={"slides": slides, "index": index, "patches": patches})


def require_apart(slides: SlidesConfig, index_uri: str, run_uri: str = "") -> None:
    """Raises `UserError` where a folder of slides, the index and the run are not each a folder of its own:
    eosin's objects among the slides would be listed as such, and those of a run deleted with it."""
    folders = [("slides", uri) for uri in (slides.uri, *(source.uri for source in slides.sources))]
    names: dict[str, str] = {}
    for name, given in (*folders, ("index", index_uri), ("run", run_uri)):
        uri = join_uri(given) if given else ""
        if uri and (other := names.setdefault(uri, name)) != name:
            raise UserError(f"{other} and {name} are both {uri}", hint=f"name another folder for the {name}")


def _resolved_source(source: SourceConfig) -> SourceConfig:
    """With whole URIs, and the version of the archive's index that is read."""
    uris = {name: join_uri(getattr(source, name)) for name in ("uri", "manifest", "gdc", "bucket")
            if getattr(source, name)}  # fmt: skip
    if source.idc is not None and not source.idc.version:
        try:
            newest = metadata.version("idc-index-data")
        except metadata.PackageNotFoundError as error:
            raise MissingDependency("idc-index-data", "idc") from error
        return source.model_copy(update={"idc": source.idc.model_copy(update={"version": newest})})
    return source.model_copy(update=uris)


def _beside_the_runs(run_uri: str, slides: SlidesConfig) -> str:
    """In the folder `indexes` beside the folder `runs`, or, where runs lie in another one, inside that."""
    place, _, _ = join_uri(run_uri).rpartition("/")
    parent, _, folder = place.rpartition("/")
    if folder == "runs" and not parent.endswith("/"):  # a bucket may be called runs
        place = parent
    return join_uri(place, "indexes", _index_name(slides))


def _index_name(slides: SlidesConfig) -> str:
    whole, last = slides.uri.rstrip("/"), slides.uri.rstrip("/").rpartition("/")[2]
    if slides.sources:
        named = {source.name: source.model_dump(mode="json") for source in slides.sources}
        whole, last = json.dumps(named, sort_keys=True), "-".join(named)[:64]
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")
    return f"{last or 'slides'}-{digest}"


@dataclass(frozen=True)
class Planned:
    """What planning a run would publish, and what that changes. `config` is resolved."""

    config: RunConfig
    begun: bool
    """A configuration is there already."""
    changes: tuple[str, ...] = ()
    """`section.key: old → new` of every value that is another than the one there."""
    renewed: bool = False
    """Some of them decide the result: the run, of which nothing is trained, begins anew."""

    def __str__(self) -> str:
        if not self.changes:
            return "the run is begun, with the same configuration" if self.begun else "a new run"
        how = "nothing was trained: the run begins anew with" if self.renewed else "the run goes on with"
        return f"{how} {'; '.join(self.changes)}"


def plan_config(run_uri: str, config: RunConfig) -> Planned:
    """What `prepare_run` would do, without doing it.

    Raises `UserError` with the difference where the run has trained something with another configuration;
    what only steers speed or placement may differ, and the new values are those that are used.
    """
    there: bytes | None = None
    with contextlib.suppress(NotFound):
        there = open_store(run_uri).get(RunLayout.CONFIG)
    return _plan_over(run_uri, there, config)


def _plan_over(run_uri: str, there: bytes | None, config: RunConfig) -> Planned:
    """As `plan_config`, over the configuration `there` (None: there is none)."""
    store, config = open_store(run_uri), resolve(config, run_uri)
    if there is None:
        return Planned(config, begun=False)
    try:
        old = load_config(there.decode(errors="replace"), source=join_uri(run_uri, RunLayout.CONFIG))
    except UserError:
        if has_trained(store):
            raise
        return Planned(config, True, ("the configuration that is there cannot be read",), True)
    decisive = difference(old.identity(), config.identity())
    if decisive and has_trained(store):
        raise UserError(
            f"run {run_uri} was begun with another configuration:\n  " + "\n  ".join(decisive),
            hint=f"take another run URI, undo the change, or remove the run: eosin delete {quote(run_uri)};"
            f" to train on to more steps or at another rate: eosin train {quote(run_uri)} --prolong "
            "STEPS --set …",
        )
    changes = difference(old.model_dump(mode="json"), config.model_dump(mode="json"))
    return Planned(config, True, tuple(changes), bool(decisive))


def prepare_run(run_uri: str, config: RunConfig) -> RunConfig:
    """Publish the resolved configuration of a run; returns it.

    Where the run was begun before, what only steers speed or placement is replaced. Where nothing is
    trained yet anything is, and what was made with the old values (the pinned snapshot, patch sets) is
    dropped. Raises `UserError` with the difference where something is trained, `TransientError` where
    others keep planning the same run.
    """
    store, planned = open_store(run_uri), Planned(config, begun=False)

    def change(there: bytes | None) -> bytes | None:
        nonlocal planned
        planned = _plan_over(run_uri, there, config)
        if planned.renewed:
            _begin_anew(store, planned.changes)
        return None if planned.begun and not planned.changes else dump_config(planned.config).encode()

    update_object(store, RunLayout.CONFIG, change)
    return planned.config


_COURSE = ("train.num_steps", "train.momentum", "train.optimizer.lr", "train.optimizer.min_lr",
           "train.optimizer.warmup_steps", "train.optimizer.weight_decay_end")  # fmt: skip


def change_course(run_uri: str, overrides: Sequence[str]) -> RunConfig:
    """Change what a run that has trained is still to do, from its newest checkpoint on; its configuration.

    `overrides`: `train.num_steps=200000`, `train.optimizer.lr=1e-4` and the other keys of schedules; what
    only steers speed or placement may be among them. What was trained until then is kept in `train.phases`,
    with who asked. A world that still trains by the old course publishes nothing more. Asking again for the
    same is a no-op. Raises `UserError` where another key would change, no checkpoint is there or fewer steps
    are asked for than were taken; `TransientError` where others keep planning the run.
    """
    store, source = open_store(run_uri), join_uri(run_uri, RunLayout.CONFIG)
    new = load_run(run_uri, store=store)

    def change(there: bytes | None) -> bytes | None:
        nonlocal new
        old = load_run(run_uri, store=store) if there is None else load_config(there.decode(), source=source)
        new = with_overrides(old, overrides, source=source)
        decisive = difference(old.identity(), new.identity())
        foreign = [line for line in decisive if not line.startswith(tuple(f"{key}:" for key in _COURSE))]
        if foreign:
            raise UserError(
                f"{foreign[0]} would change what run {run_uri} has trained already",
                hint="of a run that has trained these may change: " + ", ".join(_COURSE),
            )
        if decisive:
            _stop_others(store, "a change of the run's course")
            new = _with_phase(store, old, new)
        return None if new == old else dump_config(new).encode()

    update_object(store, RunLayout.CONFIG, change)
    return new


def _with_phase(store: Store, old: RunConfig, new: RunConfig) -> RunConfig:
    """`new` from the newest checkpoint on, and until there as `old` was planned."""
    steps = complete_steps(store)
    if not steps:
        raise UserError(
            f"run {store.uri} has no checkpoint from which it could be trained on",
            hint="of a run without one, plan another with the new values",
        )
    phases = old.train.phases
    if not phases or phases[-1].until_step < steps[-1]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        ended = old.train.planned_phases()[-1].model_copy(
            update={"until_step": steps[-1], "changed_by": f"{_who()}, {now}"}
        )
        phases = (*phases, ended)
    overrides = {"train": {**new.train.model_dump(mode="json"), "phases": [p.model_dump() for p in phases]}}
    return load_config({**new.model_dump(mode="json"), **overrides}, source=store.uri)


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user id without a name, as in a pod
        return f"user {os.getuid()}@{socket.gethostname()}"


def complete_steps(store: Store) -> list[int]:
    """Steps of all checkpoints that have a marker, ascending."""
    marker = re.compile(rf"{RunLayout.CHECKPOINTS}step-(\d+)/{re.escape(COMPLETE)}")
    found = (marker.fullmatch(info.key) for info in store.list(RunLayout.CHECKPOINTS))
    return sorted(int(match[1]) for match in found if match)


def exported_models(store: Store) -> list[str]:
    """Names of the teachers whose card, published last, is there; in name order, hence by step."""
    card = re.compile(re.escape(RunLayout.TEACHERS) + r"([^/]+)/model\.json")
    found = (card.fullmatch(info.key) for info in store.list(RunLayout.TEACHERS))
    return sorted(match[1] for match in found if match)


def has_trained(store: Store) -> bool:
    """Whether a run, or a run of a study, has published anything that its training or judging made."""
    results = (RunLayout.CHECKPOINTS, RunLayout.TEACHERS, RunLayout.METRICS, RunLayout.TRAINING_DONE)
    if any(next(iter(store.list(prefix)), None) is not None for prefix in results):
        return True
    variants = (info.key.split("/", 2)[-1] for info in store.list(RunLayout.VARIANTS))
    return any(key.startswith(results) for key in variants)


def _stop_others(store: Store, holder: str) -> None:
    """Take the run over from a world that may still live; it publishes nothing more."""
    if store.exists(RunLayout.LEASE):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lease = LeaseRecord(token=uuid.uuid4().hex, holder=holder, taken_at=now)
        store.put(RunLayout.LEASE, lease.to_json())


def _begin_anew(store: Store, changes: tuple[str, ...]) -> None:
    """Drop what was made with other values; a world of that configuration which still lives publishes
    nothing more.

    The configuration is replaced after this: a kill in between leaves a run that is planned, no more.
    """
    _stop_others(store, "a new plan of the run")
    if all(change.startswith(_NOT_OF_PATCHES) for change in changes):
        return
    store.delete([RunLayout.INDEX_PIN, RunLayout.SCAN])
    for prefix in (RunLayout.PATCH_SETS, RunLayout.QUARANTINE):
        found = [info.key for info in store.list(prefix)]
        # Manifests and markers first: what is left by a kill is not taken for whole.
        store.delete(sorted(found, key=lambda key: (not key.endswith(".json"), key)))


def load_run(run_uri: str, *, store: Store | None = None) -> RunConfig:
    """The configuration a run was begun with. Raises `UserError` where nothing was begun there."""
    store = store or open_store(run_uri)
    try:
        text = store.get(RunLayout.CONFIG).decode()
    except NotFound:
        is_index = store.exists(IndexLayout.LATEST)
        raise UserError(
            f"no run at {run_uri}: {RunLayout.CONFIG} is not there",
            hint=f"that is an index: eosin index inspect {quote(run_uri)}" if is_index
            else "begin one with `eosin run RECIPE --local --run URI --slides URI`",
        ) from None  # fmt: skip
    return load_config(text, source=join_uri(run_uri, RunLayout.CONFIG))


def pin_index(run_uri: str, pin: IndexPin) -> IndexPin:
    """Pin the snapshot this run reads; a pin that is there already wins, and is returned."""
    return publish_once(open_store(run_uri), RunLayout.INDEX_PIN, pin)


def load_pin(run_uri: str, *, store: Store | None = None) -> IndexPin:
    """The pinned snapshot. Raises `UserError` where the run has not been indexed."""
    pin = load_record(IndexPin, store or open_store(run_uri), RunLayout.INDEX_PIN)
    if pin is None:
        raise UserError(
            f"run {run_uri} has no index yet", hint=f"run `eosin index --run {quote(run_uri)}` first"
        )
    return pin


def load_study(study_uri: str) -> Study:
    """Raises `UserError` where no study was begun at `study_uri`."""
    study = load_record(Study, open_store(study_uri), RunLayout.STUDY)
    if study is None:
        raise UserError(f"no study at {study_uri}: {RunLayout.STUDY} is not there")
    return study


def load_failures(store: Store) -> tuple[StepFailure, ...]:
    """Last errors of the run's steps that have not succeeded since, the newest first."""
    found = [load_record(StepFailure, store, info.key) for info in store.list(RunLayout.FAILURES)]
    return tuple(sorted(filter(None, found), key=lambda failure: failure.time, reverse=True))


def load_training_done(store: Store, config: RunConfig) -> TrainingDone | None:
    """The record that the training of `config` has ended; None where it has not, or another's has."""
    done = load_record(TrainingDone, store, RunLayout.TRAINING_DONE)
    return done if done is not None and done.config_digest == config.digest() else None


def last_step(store: Store) -> dict[str, Any] | None:
    """The newest `step` event of the training's log; None before the first."""
    for key in reversed([info.key for info in store.list(RunLayout.logs("train"))]):
        for line in reversed(store.get(key).decode(errors="replace").splitlines()):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "step":
                    return event
    return None


def has_teacher(store: Store, name: str) -> bool:
    """Whether the exported teacher `name` is whole."""
    return store.exists(RunLayout.teacher_card(name)) and store.exists(RunLayout.teacher_weights(name))


def missing_teachers(store: Store, done: TrainingDone) -> list[str]:
    """Teachers of a run that has ended that are not whole any more, and could be made again or are needed:
    those whose checkpoint is there, and the last one."""
    return [
        name
        for name in done.models
        if not has_teacher(store, name)
        and (name == done.models[-1] or store.exists(RunLayout.checkpoint_marker(step_of(name) or 0)))
    ]
