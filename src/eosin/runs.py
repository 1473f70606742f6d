"""A run's beginning: its configuration published once, the index snapshot it reads pinned once."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime

from eosin.config import RunConfig, difference, dump_config, load_config
from eosin.errors import UserError
from eosin.layout import RunLayout, step_of
from eosin.records import IndexPin, TrainingDone, load_record, publish_once
from eosin.storage import NotFound, Store, join_uri, open_store, put_if_absent


def dated(run_uri: str, day: date | None = None) -> str:
    """`run_uri` with `day` (today, UTC) as YYYY-MM-DD in the place of `{date}`."""
    return run_uri.replace("{date}", (day or datetime.now(UTC).date()).isoformat())


def resolve(config: RunConfig, run_uri: str) -> RunConfig:
    """`config` with whole URIs, and the index's filled in: one a folder of slides, beside the runs.

    `s3://bucket/runs/NAME` with slides in `s3://bucket/slides/tcga` gives
    `s3://bucket/indexes/tcga-1f0c…`; the digits are of the whole slides URI.
    """
    slides_uri = join_uri(config.slides.uri) if config.slides.uri else ""
    index_uri = join_uri(config.index.uri or _beside_the_runs(run_uri, slides_uri))
    slides = config.slides.model_copy(update={"uri": slides_uri})
    index = config.index.model_copy(update={"uri": index_uri})
    patches = config.patches
    if patches.source != "slides":
        patches = patches.model_copy(update={"source": join_uri(patches.source)})
    return config.model_copy(update={"slides": slides, "index": index, "patches": patches})


def _beside_the_runs(run_uri: str, slides_uri: str) -> str:
    runs, _, _ = join_uri(run_uri).rpartition("/")
    parent, _, folder = runs.rpartition("/")
    place = parent if folder and parent and not parent.endswith("/") else runs
    return join_uri(place, "indexes", _index_name(slides_uri))


def _index_name(slides_uri: str) -> str:
    digest = hashlib.sha256(slides_uri.rstrip("/").encode()).hexdigest()[:8]
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", slides_uri.rstrip("/").rpartition("/")[2]).strip("-.")
    return f"{last or 'slides'}-{digest}"


def prepare_run(run_uri: str, config: RunConfig) -> RunConfig:
    """Publish the resolved configuration of a run, or check that it is the one already there.

    Returns the configuration to use. Raises `UserError` with the difference where the run was begun
    with another one; what only steers speed or placement may differ and the new values are used.
    """
    config = resolve(config, run_uri)
    store = open_store(run_uri)
    if not put_if_absent(store, RunLayout.CONFIG, dump_config(config).encode()):
        _refuse_difference(run_uri, load_run(run_uri, store=store), config)
    return config


def load_run(run_uri: str, *, store: Store | None = None) -> RunConfig:
    """The configuration a run was begun with. Raises `UserError` where nothing was begun there."""
    store = store or open_store(run_uri)
    try:
        text = store.get(RunLayout.CONFIG).decode()
    except NotFound:
        raise UserError(
            f"no run at {run_uri}: {RunLayout.CONFIG} is not there",
            hint="begin one with `eosin run RECIPE --local --run URI --slides URI`",
        ) from None
    return load_config(text, source=join_uri(run_uri, RunLayout.CONFIG))


def pin_index(run_uri: str, pin: IndexPin) -> IndexPin:
    """Pin the snapshot this run reads; a pin that is there already wins, and is returned."""
    return publish_once(open_store(run_uri), RunLayout.INDEX_PIN, pin)


def load_pin(run_uri: str, *, store: Store | None = None) -> IndexPin:
    """The pinned snapshot. Raises `UserError` where the run has not been indexed."""
    pin = load_record(IndexPin, store or open_store(run_uri), RunLayout.INDEX_PIN)
    if pin is None:
        raise UserError(f"run {run_uri} has no index yet", hint=f"run `eosin index --run {run_uri}` first")
    return pin


def load_training_done(store: Store, config: RunConfig) -> TrainingDone | None:
    """The record that the training of `config` has ended; None where it has not, or another's has."""
    done = load_record(TrainingDone, store, RunLayout.TRAINING_DONE)
    return done if done is not None and done.config_digest == config.digest() else None


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


def _refuse_difference(run_uri: str, old: RunConfig, new: RunConfig) -> None:
    lines = difference(old.identity(), new.identity())
    if lines:
        raise UserError(
            f"run {run_uri} was begun with another configuration:\n  " + "\n  ".join(lines),
            hint="take another run URI, or undo the change",
        )
