"""Everything a run has published, read once; what is missing or damaged becomes a line, not an error."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from eosin.config import RunConfig, load_config
from eosin.errors import EosinError, PermanentError, TransientError
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import RunLayout
from eosin.patches.sets.patchset import CONTACT_SHEET
from eosin.recipes import load_recipe
from eosin.records import MetricRecord, PatchSetManifest, StepFailure, TeacherCard, TrainingDone, load_record
from eosin.records.base import Record
from eosin.runs import exported_models, load_failures, load_pin, load_run
from eosin.storage import NotFound, Store, open_store
from eosin.summary.earlier import EarlierRun, read_earlier
from eosin.summary.training_log import Event, read_events

_JPEG = b"\xff\xd8\xff"

T = TypeVar("T")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class PatchSet:
    """A patch set of the run, and a picture of some of its patches."""

    manifest: PatchSetManifest
    contact_sheet: bytes | None
    """JPEG."""


@dataclass(frozen=True)
class Published:
    """All of a run that the report is made of."""

    run_uri: str
    config: RunConfig
    recipe: RunConfig | None = None
    """The recipe the configuration began as; None where it is not a packaged one."""
    snapshot: Snapshot | None = None
    training: TrainingDone | None = None
    teachers: tuple[TeacherCard, ...] = ()
    """In step order."""
    records: tuple[tuple[str, MetricRecord], ...] = ()
    """With the key each was found at."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """JPEGs by the key that a record names."""
    patch_sets: tuple[PatchSet, ...] = ()
    events: tuple[Event, ...] = ()
    """Of every step's log but this one's, by time."""
    earlier: tuple[EarlierRun, ...] = ()
    failures: tuple[StepFailure, ...] = ()
    """Of steps that have not succeeded since, the newest first; not of this one."""
    problems: tuple[str, ...] = field(default=())
    """What could not be read, in words."""


class Reader:
    """Reads records of a run and notes what is not there."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.problems: list[str] = []

    def attempt(self, read: Callable[[], T]) -> T | None:
        """The value, or None and a line; only a store that does not answer is an error."""
        try:
            return read()
        except TransientError:
            raise
        except EosinError as error:
            self.problems.append(error.message)
        return None

    def record(self, kind: type[R], key: str, *, absent: str = "") -> R | None:
        """The record at `key`; `absent` is the line where nothing is there (empty: no line)."""
        num_problems = len(self.problems)
        found = self.attempt(lambda: load_record(kind, self.store, key))
        if found is None and absent and len(self.problems) == num_problems:
            self.problems.append(absent)
        return found


def read_published(run_uri: str) -> Published:
    """All that lies under `run_uri`. Raises `UserError` where no run is there."""
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    reader = Reader(store)
    records = metric_records(reader)
    pin = reader.attempt(lambda: load_pin(run_uri, store=store))
    snapshot = reader.attempt(lambda: open_snapshot(pin.index_uri, pin.snapshot_id)) if pin else None
    training = reader.record(
        TrainingDone, RunLayout.TRAINING_DONE, absent="training has not ended; the report shows what is there"
    )
    events = read_events(store)
    failures = reader.attempt(lambda: load_failures(store)) or ()
    return Published(
        run_uri=run_uri,
        config=config,
        recipe=_recipe(config),
        snapshot=snapshot,
        training=training,
        teachers=_teachers(reader),
        records=records,
        pictures=_pictures(store, records),
        patch_sets=_patch_sets(reader),
        events=events,
        earlier=read_earlier(run_uri, config, events, reader.problems),
        failures=tuple(failure for failure in failures if failure.step != "summarize"),
        problems=tuple(reader.problems),
    )


def _recipe(config: RunConfig) -> RunConfig | None:
    try:
        text, source = load_recipe(config.recipe)
        return load_config(text, source=source)
    except EosinError:
        return None


def _teachers(reader: Reader) -> tuple[TeacherCard, ...]:
    names = exported_models(reader.store)
    cards = [reader.record(TeacherCard, RunLayout.teacher_card(name)) for name in names]
    return tuple(sorted((card for card in cards if card), key=lambda card: (card.step or 0, card.name)))


def metric_records(reader: Reader) -> tuple[tuple[str, MetricRecord], ...]:
    """Every evaluation record of the run that can be read, with its key."""
    keys = [info.key for info in reader.store.list(RunLayout.METRICS) if info.key.endswith(".json")]
    found = [(key, reader.record(MetricRecord, key)) for key in keys]
    return tuple((key, record) for key, record in found if record)


def _pictures(store: Store, records: Sequence[tuple[str, MetricRecord]]) -> dict[str, bytes]:
    """Those that are there and are JPEGs; a record speaks of nothing outside the run's pictures."""
    named = {each.key for _, record in records for each in record.details.examples}
    keys = sorted(key for key in named if key.startswith(RunLayout.PICTURES) and ".." not in key)
    found = {key: _optional(store, key) for key in keys}
    return {key: data for key, data in found.items() if data and data.startswith(_JPEG)}


def _patch_sets(reader: Reader) -> tuple[PatchSet, ...]:
    manifest = re.compile(re.escape(RunLayout.PATCH_SETS) + r"([^/]+)/manifest\.json")
    names = [
        match[1]
        for info in reader.store.list(RunLayout.PATCH_SETS)
        if (match := manifest.fullmatch(info.key))
    ]
    found = []
    for name in names:
        record = reader.record(PatchSetManifest, RunLayout.patch_set_manifest(name))
        if record:
            found.append(PatchSet(record, _optional(reader.store, RunLayout.patch_set(name) + CONTACT_SHEET)))
    if not names:
        reader.problems.append("no patch set has been decoded")
    return tuple(found)


def _optional(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except (NotFound, PermanentError):
        return None
