"""Checkpoints in the run: every rank writes its share, then rank 0 a marker that says they are whole."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from eosin.errors import PermanentError, TransientError
from eosin.layout import COMPLETE, RunLayout, step_of
from eosin.observability import RunLog
from eosin.runs import complete_steps
from eosin.storage import NotFound, Store
from eosin.training.checkpoints.files import (
    CheckpointMarker,
    ReceiptEntry,
    ShareReceipt,
    fetch,
    pack,
    put,
    read_marker,
    read_part,
    read_stored,
)
from eosin.training.checkpoints.state import TrainingState, flatten, live_parts, set_step, synchronize
from eosin.training.engine.step import Learner

ALONE = "0" * 8
_POLL_S = 0.1


def save_share(store: Store, snapshot: TrainingState, *, world: str = ALONE) -> ShareReceipt:
    """Publish what `snapshot` has of the checkpoint of its step, and its receipt last.

    `world`: of the processes that write together, hex; the same on all of them.
    """
    prefix = f"{world[:8]}-{snapshot.index:05d}-of-{snapshot.num_pieces:05d}"
    files, stored = [], []
    for number, (data, rows) in enumerate(pack(snapshot)):
        key = RunLayout.checkpoint_part(snapshot.step, f"{prefix}-{number:03d}")
        store.put(key, data)
        files.append(key)
        stored += rows
    receipt = ShareReceipt(files=tuple(files), stored=tuple(stored))
    store.put(RunLayout.checkpoint_receipt(snapshot.step, prefix), receipt.to_json())
    return receipt


def save_checkpoint(
    store: Store,
    snapshot: TrainingState,
    config_digest: str,
    *,
    world: str = ALONE,
    before_marker: Callable[[], None] = lambda: None,
    timeout_s: float = 600,
) -> CheckpointMarker:
    """Publish piece 0 of a checkpoint, wait until all other pieces are there, and mark it whole.

    A marker that the step already has stays until then: no file it names is touched. What `before_marker`
    raises leaves the checkpoint without a new marker. Raises `TransientError` where a piece does not come
    within `timeout_s`.
    """
    save_share(store, snapshot, world=world)
    names = [f"{world[:8]}-{i:05d}-of-{snapshot.num_pieces:05d}" for i in range(snapshot.num_pieces)]
    deadline_s = time.monotonic() + timeout_s
    entries, receipts = [], []
    for key in (RunLayout.checkpoint_receipt(snapshot.step, name) for name in names):
        data = _wait_for(store, key, deadline_s)
        entries.append(ReceiptEntry(key=key, sha256=hashlib.sha256(data).hexdigest()))
        receipts.append(ShareReceipt.from_json(data, source=f"{store.uri}/{key}"))
    _require_whole(receipts, snapshot.step)
    marker = CheckpointMarker(
        step=snapshot.step,
        config_digest=config_digest,
        receipts=tuple(entries),
        size_bytes=sum(rows.length for receipt in receipts for rows in receipt.stored),
        loss=snapshot.loss,
    )
    before_marker()
    store.put(RunLayout.checkpoint_marker(snapshot.step), marker.to_json())
    return marker


def take_newest(
    learner: Learner, store: Store, digests: Mapping[str, int], log: RunLog
) -> tuple[int, float | None]:
    """Put the newest whole checkpoint into `learner`, on every rank; its step and loss, or (0, None).

    A collective. Where parameters are sharded each rank reads its own rows, else rank 0 reads and the
    others get it from there. One that is half-written or damaged is skipped with a warning and the one before
    is taken. Raises `UserError` where it belongs to another configuration.
    """
    world = learner.world
    for step in world.gather_json(complete_steps(store)[::-1] if world.rank == 0 else [])[0]:
        loss, values = None, None
        try:
            marker = read_marker(store, step, digests)
            reads = learner.strategy.is_sharded or world.rank == 0
            live = flatten(live_parts(learner)) if reads else {}
            loss, values = marker.loss, fetch(store, read_stored(store, marker), live) if reads else []
        except (NotFound, PermanentError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, NotFound) else str(error)
            log.event("warning", message=f"checkpoint {step} is skipped: {reason}")
        if all(world.gather_json(values is not None)):
            put(values or [])
            set_step(learner, step)
            return (step if learner.strategy.is_sharded else synchronize(learner, step)), loss
    if not learner.strategy.is_sharded:
        synchronize(learner, 0)
    return 0, None


def load_part(store: Store, step: int, part: str, digests: Mapping[str, int]) -> dict[str, Tensor]:
    """One part (student, teacher, optimizer, loss) of the checkpoint of `step`, whole. Raises `NotFound`,
    `PermanentError` where it is damaged, `UserError` where it belongs to another configuration."""
    return read_part(store, read_marker(store, step, digests), part)


def delete_old(store: Store, keep: int) -> list[int]:
    """Delete all but the newest `keep` checkpoints, markers first, and what older kills left; the steps."""
    found = _by_step(store)
    whole = [step for step, keys in found.items() if RunLayout.checkpoint_marker(step) in keys]
    kept = whole[-keep:]
    old = [step for step in found if kept and step < kept[0]]
    for step in old:
        keys = sorted(found[step], key=lambda key: not key.endswith(COMPLETE))
        store.delete(keys[:1])
        store.delete(keys[1:])
    return old


def _wait_for(store: Store, key: str, deadline_s: float) -> bytes:
    while True:
        try:
            return store.get(key)
        except NotFound:
            if time.monotonic() > deadline_s:
                raise TransientError(
                    f"{key} was not written in time: another rank has died or its store is slow",
                    hint="training goes on from the checkpoint before",
                ) from None
        time.sleep(_POLL_S)


def _require_whole(receipts: Iterable[ShareReceipt], step: int) -> None:
    """The pieces must make up every tensor. A tensor that none mentions is found by whoever loads it."""
    stored = Counter[str]()
    expected: dict[str, int] = {}
    for rows in (rows for receipt in receipts for rows in receipt.stored):
        stored[rows.name] += rows.num_rows if rows.shape else 1
        expected[rows.name] = rows.shape[0] if rows.shape else 1
    torn = [name for name, num_rows in expected.items() if stored[name] != num_rows]
    if torn:
        raise PermanentError(
            f"the pieces of checkpoint {step} do not make up {torn[0]}: {stored[torn[0]]} of"
            f" {expected[torn[0]]} rows"
        )


def _by_step(store: Store) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for info in store.list(RunLayout.CHECKPOINTS):
        step = step_of(info.key.removeprefix(RunLayout.CHECKPOINTS).partition("/")[0])
        if step is not None:
            found.setdefault(step, []).append(info.key)
    return dict(sorted(found.items()))
