"""Garbage collection over runs and indexes: what can go, and its deletion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from eosin.errors import UserError
from eosin.registry.entries import list_entries
from eosin.retention.spare import (
    Age,
    Doomed,
    GcResult,
    Run,
    find_runs,
    spare_index_objects,
    spare_run_objects,
)
from eosin.storage import Store, open_store

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
        _sweep((*runs, *indexes), min_age_s)
    return GcResult(deleted=delete, doomed=tuple(each for _, each in doomed), kept=tuple(kept))


def _judge(
    runs: Sequence[str], indexes: Sequence[str], registries: Sequence[str], age: Age
) -> tuple[_Doomed, list[str]]:
    """What can go, with its store, and why other things are kept. Deletes nothing."""
    found = [run for uri in runs for run in _runs_at(uri)]
    doomed = [(run.store, each) for run in found for each in spare_run_objects(run, age)]
    kept = [*(run.problem for run in found if run.problem), *_undecided(found, age)]
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
    entries = [each.entry for each in list_entries(uri)]
    if not entries:
        raise UserError(f"there is no model in registry {uri}", hint="name the folder that holds models/")
    return {version.snapshot_id for entry in entries for version in entry.versions}


def _runs_at(uri: str) -> list[Run]:
    found = find_runs(uri)
    if not found:
        raise UserError(f"there is no run at {uri}", hint="name a run, or the folder that holds runs")
    return found


def _undecided(found: Sequence[Run], age: Age) -> list[str]:
    """Runs at work that have yet to say which snapshot they read."""
    return [
        f"{run.store.uri} is young and pins no snapshot yet"
        for run in found
        if run.pin is None and not run.problem and age.is_young(run.objects)
    ]


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


def _sweep(uris: Sequence[str], min_age_s: float) -> None:
    for store in map(open_store, uris):
        if isinstance(store, _Sweeps):
            store.remove_unfinished(older_than_s=min_age_s)
