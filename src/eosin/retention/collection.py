"""Garbage collection over runs and indexes: what can go, how it is grouped and aged, and its deletion."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

from eosin.config import RunConfig, load_config
from eosin.errors import EosinError, PermanentError, UserError
from eosin.index.rows import decode_rows
from eosin.index.snapshot import Latest, read_latest
from eosin.layout import IndexLayout, RunLayout, step_of
from eosin.records import IndexPin, PatchSetManifest, load_record
from eosin.registry.entries import list_entries
from eosin.storage import NotFound, ObjectInfo, Store, join_uri, open_store
from eosin.words import counted, size_text


@dataclass(frozen=True)
class Doomed:
    """Objects that nothing needs and that go together. `keys` are in the order of deletion."""

    uri: str
    reason: str
    keys: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class GcResult:
    """`deleted` says whether `doomed` was deleted or only listed; `kept` why something was left alone."""

    deleted: bool
    doomed: tuple[Doomed, ...]
    kept: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all that is doomed together."""
        return sum(each.size_bytes for each in self.doomed)

    def __str__(self) -> str:
        lines = [f"{size_text(each.size_bytes):>10}  {each.uri}  {each.reason}" for each in self.doomed]
        lines += [f"  kept: {reason}" for reason in self.kept]
        verb = "deleted" if self.deleted else "can go; add --delete to delete"
        num_objects = sum(len(each.keys) for each in self.doomed)
        return "\n".join([*lines, f"{counted(num_objects, 'object')}, {size_text(self.size_bytes)}: {verb}"])


@dataclass(frozen=True)
class Age:
    """Nothing modified after `limit_s` (seconds since the epoch) is ever touched."""

    limit_s: float

    def is_young(self, objects: Iterable[ObjectInfo]) -> bool:
        """Whether any of `objects` is too young; what belongs together is as young as its youngest."""
        return any(each.modified_s > self.limit_s for each in objects)


def doom(store: Store, folder: str, objects: Sequence[ObjectInfo], reason: str, *, first: str = "") -> Doomed:
    """Objects to delete, the marker `first` before all others, so that a kill leaves no false whole."""
    keys = sorted((each.key for each in objects), key=lambda key: (key != first, key))
    size_bytes = sum(each.size_bytes for each in objects)
    return Doomed(join_uri(store.uri, folder), reason, tuple(keys), size_bytes)


def by_folder(objects: Iterable[ObjectInfo], prefix: str) -> dict[str, list[ObjectInfo]]:
    """Objects by the name of the folder they lie in right under `prefix`; loose ones are left out."""
    folders: dict[str, list[ObjectInfo]] = {}
    for each in objects:
        name, slash, _ = each.key.removeprefix(prefix).partition("/")
        if slash:
            folders.setdefault(name, []).append(each)
    return folders


@dataclass(frozen=True)
class Run:
    """One run as found: `pin` the snapshot it reads; `problem` why it cannot be understood."""

    store: Store
    objects: tuple[ObjectInfo, ...]
    config: RunConfig | None = None
    pin: IndexPin | None = None
    problem: str = ""


def find_runs(uri: str) -> list[Run]:
    """The run at `uri`, or the runs in the folders right under it.

    A folder that holds no configuration is listed too, with its problem. Raises as `Store.list` does.
    """
    store = open_store(uri)
    objects = tuple(store.list())
    if any(each.key == RunLayout.CONFIG for each in objects):
        return [_read(store, objects)]
    return [
        _read(
            open_store(join_uri(uri, name)),
            tuple(replace(each, key=each.key.removeprefix(f"{name}/")) for each in found),
        )
        for name, found in by_folder(objects, "").items()
    ]


def spare_run_objects(run: Run, age: Age) -> Iterator[Doomed]:
    """Checkpoints beyond `train.keep_checkpoints`, and what kills have left unfinished.

    Teachers, metrics, embeddings, logs and reports are never touched.
    """
    if run.config is None:
        return
    yield from _checkpoints(run, run.config.train.keep_checkpoints, age)
    yield from _patch_sets(run, age)


def _read(store: Store, objects: tuple[ObjectInfo, ...]) -> Run:
    try:
        text = store.get(RunLayout.CONFIG).decode()
        config = load_config(text, source=join_uri(store.uri, RunLayout.CONFIG))
        return Run(store, objects, config, load_record(IndexPin, store, RunLayout.INDEX_PIN))
    except NotFound:
        problem = f"there is no {RunLayout.CONFIG}"
    except (EosinError, UnicodeDecodeError) as error:
        problem = str(error).partition("\n")[0]
    return Run(store, objects, problem=f"{store.uri} cannot be understood: {problem}")


def _under(run: Run, prefix: str) -> dict[str, list[ObjectInfo]]:
    return by_folder((each for each in run.objects if each.key.startswith(prefix)), prefix)


def _checkpoints(run: Run, keep: int, age: Age) -> Iterator[Doomed]:
    folders = {step: found for name, found in _under(run, RunLayout.CHECKPOINTS).items()
               if (step := step_of(name)) is not None}  # fmt: skip
    whole = sorted(step for step, found in folders.items()
                   if RunLayout.checkpoint_marker(step) in {each.key for each in found})  # fmt: skip
    spare = set(whole[:-keep])
    for step, found in sorted(folders.items()):
        if (step in whole and step not in spare) or age.is_young(found):
            continue
        reason = (
            f"older than the {keep} checkpoints to keep" if step in spare else "a checkpoint never completed"
        )
        marker = RunLayout.checkpoint_marker(step)
        yield doom(run.store, RunLayout.checkpoint(step), found, reason, first=marker)


def _patch_sets(run: Run, age: Age) -> Iterator[Doomed]:
    for name, found in _under(run, RunLayout.PATCH_SETS).items():
        keys = {each.key for each in found}
        listed = _listed_shards(run.store, name, keys)
        for shard in found:
            if not shard.key.endswith(RunLayout.SHARD_SUFFIXES) or age.is_young([shard]) or listed is None:
                continue
            marker = RunLayout.patch_set_marker_of(shard.key)
            if shard.key not in listed and marker not in keys:
                yield doom(run.store, shard.key, [shard], "a patch-set shard never completed")


def _listed_shards(store: Store, name: str, keys: set[str]) -> set[str] | None:
    """Shards that the set's manifest names; none without a manifest; None where it cannot be read."""
    key = RunLayout.patch_set_manifest(name)
    if key not in keys:
        return set()
    try:
        manifest = load_record(PatchSetManifest, store, key)
    except EosinError:
        return None
    if manifest is None:
        return None
    return {RunLayout.patch_set(name) + shard.key for shard in manifest.shards}


def spare_index_objects(store: Store, pinned: set[str], age: Age, kept: list[str]) -> Iterator[Doomed]:
    """Snapshots and scans that are neither pinned nor the newest, then the tables that only they used.

    `pinned` are the snapshots that runs read. Appends to `kept` why something is left alone.
    """
    latest = _latest(store, kept)
    if latest is None:
        return
    snapshots = by_folder(store.list(IndexLayout.SNAPSHOTS), IndexLayout.SNAPSHOTS)
    scans = by_folder(store.list(IndexLayout.SCANS), IndexLayout.SCANS)
    tables = list(store.list(IndexLayout.TILES))
    kept_snapshots = _kept(snapshots, pinned | {latest.snapshot_id}, age)
    kept_scans = _kept(scans, {latest.scan_id}, age)
    for name in sorted(snapshots.keys() - kept_snapshots):
        marker = IndexLayout.snapshot_marker(name)
        reason = "a snapshot that no run pins and that is not the newest"
        yield doom(store, IndexLayout.snapshot(name), snapshots[name], reason, first=marker)
    for name in sorted(scans.keys() - kept_scans):
        yield doom(store, IndexLayout.scan(name), scans[name], "a scan that is not the newest snapshot's")
    live = [snapshots[name] for name in kept_snapshots] + [scans[name] for name in kept_scans]
    yield from _orphans(store, tables, [each for found in live for each in found], age, kept)


def _latest(store: Store, kept: list[str]) -> Latest | None:
    try:
        latest = read_latest(store)
    except EosinError:
        latest = None
    if latest is None:
        kept.append(f"all of {store.uri}: {IndexLayout.LATEST} is missing or cannot be read")
    return latest


def _kept(folders: dict[str, list[ObjectInfo]], needed: set[str], age: Age) -> set[str]:
    return {name for name, found in folders.items() if name in needed or age.is_young(found)}


def _orphans(
    store: Store, tables: list[ObjectInfo], live: Iterable[ObjectInfo], age: Age, kept: list[str]
) -> Iterator[Doomed]:
    try:
        digests = _digests(store, live)
    except (EosinError, NotFound) as error:
        kept.append(f"tile tables and thumbnails of {store.uri}: {str(error).partition(chr(10))[0]}")
        return
    kinds = (IndexLayout.tiles, IndexLayout.other_reading)
    needed = {make(digest) for digest in digests for make in kinds}
    spare = [each for each in tables if each.key not in needed and not age.is_young([each])]
    if spare:
        yield doom(store, IndexLayout.TILES, spare, "tile tables and thumbnails that no snapshot names")


def _digests(store: Store, live: Iterable[ObjectInfo]) -> set[str]:
    """Digests of all slides in the rows of `live`. Raises where rows cannot be read."""
    digests: set[str] = set()
    for each in live:
        if not each.key.endswith(".parquet") or IndexLayout.is_listing(each.key):
            continue
        source = join_uri(store.uri, each.key)
        try:
            digests.update(decode_rows(store.get(each.key), source=source).column("digest"))
        except ValueError as error:
            raise PermanentError(f"{source} cannot be read: {error}") from error
    return digests


DAY_S = 24 * 3600.0
_Doomed = list[tuple[Store, Doomed]]


@runtime_checkable
class _Sweeps(Protocol):
    def remove_unfinished(self, *, older_than_s: float) -> Sequence[str]: ...


def collect(
    runs: Sequence[str],
    indexes: Sequence[str] = (),
    *,
    registries: Sequence[str] = (),
    delete: bool = False,
    min_age_s: float = DAY_S,
) -> GcResult:
    """List what nothing needs in `runs` (runs, or folders of runs) and `indexes`; delete it on demand.

    An index is judged by the runs and registries named here, so name every folder whose runs read it, and
    every registry whose models, current or not, were trained on it. Left alone:
    what is younger than `min_age_s`; a run that cannot be understood, and then every snapshot, since
    that run might need any; likewise while a young run has pinned nothing yet. Raises `UserError`
    where a URI holds no run or no registry, `PermanentError` where an entry is damaged.
    """
    if min_age_s < 0:
        raise UserError("a negative age protects nothing", hint="give hours of at least 0")
    age = Age(time.time() - min_age_s)
    judge = partial(_judge, runs, indexes, registries, age)
    doomed, kept = judge()
    if delete:
        # A first judgement of a large index takes minutes, in which a run may pin a snapshot.
        doomed = _delete(doomed, {each for _, each in judge()[0]}, kept)
        for store in map(open_store, (*runs, *indexes)):
            if isinstance(store, _Sweeps):
                store.remove_unfinished(older_than_s=min_age_s)
    return GcResult(deleted=delete, doomed=tuple(each for _, each in doomed), kept=tuple(kept))


def _judge(
    runs: Sequence[str], indexes: Sequence[str], registries: Sequence[str], age: Age
) -> tuple[_Doomed, list[str]]:
    """What can go, with its store, and why other things are kept. Deletes nothing."""
    found: list[Run] = []
    for uri in runs:
        there = find_runs(uri)
        if not there:
            raise UserError(f"there is no run at {uri}", hint="name a run, or the folder that holds runs")
        found += there
    doomed = [(run.store, each) for run in found for each in spare_run_objects(run, age)]
    kept = [run.problem for run in found if run.problem]
    # Runs at work that have yet to say which snapshot they read.
    undecided = (run for run in found if run.pin is None and not run.problem and age.is_young(run.objects))
    kept += [f"{run.store.uri} is young and pins no snapshot yet" for run in undecided]
    blocked = bool(kept) or not found
    pinned = {run.pin.snapshot_id for run in found if run.pin is not None}
    pinned.update(*(_registered(uri) for uri in registries))
    for uri in indexes:
        if blocked:
            kept.append(f"all of {uri}: a run may need any part of it")
            continue
        store = open_store(uri)
        doomed += [(store, each) for each in spare_index_objects(store, pinned, age, kept)]
    return doomed, kept


def _registered(uri: str) -> set[str]:
    """Snapshots of every version of every model: a rollback may make any of them the current one."""
    entries = list_entries(uri)
    if not entries:
        raise UserError(f"there is no model in registry {uri}", hint="name the folder that holds models/")
    return {version.snapshot_id for entry in entries for version in entry.versions}


def _delete(doomed: _Doomed, again: set[Doomed], kept: list[str]) -> _Doomed:
    """Delete what a second judgement, made now, finds doomed as well (`again`); returns that."""
    gone = []
    for store, each in doomed:
        if each not in again:
            kept.append(f"{each.uri}: it changed meanwhile")
            continue
        # The marker goes first, on its own, so that a kill half-way leaves nothing that looks whole.
        store.delete(each.keys[:1])
        store.delete(each.keys[1:])
        gone.append((store, each))
    return gone
