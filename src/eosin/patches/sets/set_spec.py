"""Specification of a patch set: declared in the configuration or when first decoded, then pinned."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eosin.config import RunConfig, difference, load_config, with_overrides
from eosin.config.patches import HELD_OUT, SetConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import RunLayout
from eosin.records import load_record, publish_once
from eosin.records.patchset import PatchSetSpec
from eosin.runs import load_pin, load_run
from eosin.storage import Store, open_store

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class Decoding:
    """One worker's part of decoding a set: `shard` of `num_shards` workers."""

    store: Store
    config: RunConfig
    snapshot: Snapshot
    name: str
    spec: SetConfig | None
    """None: the held-out set."""
    shard: int
    num_shards: int


def open_decoding(
    run_uri: str,
    name: str,
    shard: int,
    num_shards: int,
    settings: Sequence[str] = (),
    slides: Sequence[str] = (),
) -> Decoding:
    """What a worker needs. `settings` ("mpp=0.5") and `slides` (patterns) declare or narrow the set.

    Raises `UserError` for a set that nobody declared.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"there is no shard {shard} of {num_shards}", hint="shards count from 0")
    store = open_store(run_uri)
    config, pin = load_run(run_uri, store=store), load_pin(run_uri, store=store)
    changes = [*settings, *([f"slides={json.dumps(list(slides))}"] if slides else [])]
    spec = None
    if name == HELD_OUT:
        if changes:
            raise UserError(
                "the held-out set is what the run's configuration says",
                hint="declare a set of your own with --name NAME",
            )
    else:
        spec = _declared(config, name, changes) or _parse(_load(store, name, config), name)
    snapshot = open_snapshot(pin.index_uri, pin.snapshot_id)
    return Decoding(store, config, snapshot, name, spec, shard, num_shards)


def open_decoding_of_index(
    index_uri: str, out_uri: str, name: str, shard: int, num_shards: int, settings: Sequence[str],
    slides: Sequence[str],
) -> Decoding:  # fmt: skip
    """As `open_decoding`, of an index without a run: the set is what the command says, and lies in `out_uri`.

    `settings` of the section patches ("patches.reader=stage") say how slides are read. Raises `UserError`.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"there is no shard {shard} of {num_shards}", hint="shards count from 0")
    if name == HELD_OUT:
        raise UserError("the held-out set is a run's", hint="give the set a name: --name NAME")
    reading = [each for each in settings if each.startswith("patches.")]
    changes = [each for each in settings if each not in reading]
    changes += [f"slides={json.dumps(list(slides))}"] if slides else []
    config = load_config("", overrides=reading)
    spec = _declared(config, name, changes or ["kind=grid"])
    snapshot = open_snapshot(index_uri)
    return Decoding(open_store(out_uri), config, snapshot, name, spec, shard, num_shards)


def _declared(config: RunConfig, name: str, changes: Sequence[str]) -> SetConfig | None:
    """The set as the configuration and the command say; None where neither says anything."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a patch set", hint="small letters, digits and hyphens")
    if not changes:
        return config.patches.sets.get(name)
    overrides = [f"patches.sets.{name}.{change}" for change in changes]
    return with_overrides(config, overrides, source="the run's configuration").patches.sets[name]


def pin_set(job: Decoding, *, publish: bool = True) -> None:
    """Publish what the set is (`set.json`), the first worker for all: to be called once it is known to serve,
    so that a slip of the pen does not use up a name. Without `publish` it is only held against what is there.

    Raises `UserError` where another worker began it as something else.
    """
    assert job.spec is not None
    spec = job.spec.model_dump(mode="json")
    record = PatchSetSpec(snapshot_id=job.snapshot.manifest.snapshot_id, spec=spec)
    key = RunLayout.patch_set_spec(job.name)
    found = publish_once(job.store, key, record) if publish else load_record(PatchSetSpec, job.store, key)
    found = found or record
    begun = job.spec if found == record else _parse(found, job.name)
    lines = difference(begun.model_dump(mode="json"), spec)
    if lines:
        raise UserError(
            f"patch set {job.name} of {job.store.uri} was begun as another: " + "; ".join(lines),
            hint="give the new one another name",
        )


def _load(store: Store, name: str, config: RunConfig) -> PatchSetSpec:
    record = load_record(PatchSetSpec, store, RunLayout.patch_set_spec(name))
    if record is None:
        known = ", ".join([HELD_OUT, *config.patches.sets])
        raise UserError(
            f"the run has no patch set {name!r}; it has {known}",
            hint=f"declare it: eosin decode RUN --name {name} --set mpp=0.5, or patches.sets in the recipe",
        )
    return record


def _parse(record: PatchSetSpec, name: str) -> SetConfig:
    tree = {"patches": {"sets": {name: record.spec}}}
    return load_config(tree, source=f"set.json of {name}").patches.sets[name]
