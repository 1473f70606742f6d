"""Spare objects of a run: what it does not need any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eosin.config import RunConfig, load_config
from eosin.errors import EosinError
from eosin.layout import RunLayout, step_of
from eosin.records import IndexPin, PatchSetManifest, load_record
from eosin.retention.model import Age, Doomed, by_folder, doom
from eosin.storage import NotFound, ObjectInfo, Store, join_uri, open_store


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
        _read(open_store(join_uri(uri, name)), tuple(_relative(found, name)))
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


def _relative(objects: Sequence[ObjectInfo], folder: str) -> Iterator[ObjectInfo]:
    for each in objects:
        yield ObjectInfo(each.key.removeprefix(f"{folder}/"), each.size_bytes, each.etag, each.modified_s)


def _under(run: Run, prefix: str) -> dict[str, list[ObjectInfo]]:
    return by_folder((each for each in run.objects if each.key.startswith(prefix)), prefix)


def _checkpoints(run: Run, keep: int, age: Age) -> Iterator[Doomed]:
    folders = {step: found for name, found in _under(run, RunLayout.CHECKPOINTS).items()
               if (step := step_of(name)) is not None}  # fmt: skip
    whole = sorted(step for step, found in folders.items() if _has(found, RunLayout.checkpoint_marker(step)))
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


def _has(objects: Sequence[ObjectInfo], key: str) -> bool:
    return any(each.key == key for each in objects)
