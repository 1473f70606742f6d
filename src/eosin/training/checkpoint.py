"""Checkpoints in the run: safetensors files, then a JSON marker that says they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from eosin.errors import PermanentError, UserError
from eosin.layout import COMPLETE, RunLayout
from eosin.observability import RunLog
from eosin.records.base import Record
from eosin.storage import NotFound, Store
from eosin.training.state import Snapshot


def _nothing() -> None:
    return


class CheckpointPart(BaseModel):
    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class CheckpointMarker(Record):
    """`COMPLETE.json` of a checkpoint, published last."""

    step: int
    """Steps taken."""
    config_digest: str
    parts: dict[str, CheckpointPart]
    loss: float | None = None


def save_checkpoint(
    store: Store, snapshot: Snapshot, config_digest: str, *, before_marker: Callable[[], None] = _nothing
) -> CheckpointMarker:
    """Publish `snapshot` under its step. A marker of the same step is taken away first, so that a
    reader never pairs an old marker with new files. What `before_marker` raises leaves it without one."""
    store.delete([RunLayout.checkpoint_marker(snapshot.step)])
    parts = {}
    for part, tensors in snapshot.parts.items():
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        store.put(RunLayout.checkpoint_part(snapshot.step, part), data)
        parts[part] = CheckpointPart(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    marker = CheckpointMarker(
        step=snapshot.step, config_digest=config_digest, parts=parts, loss=snapshot.loss
    )
    before_marker()
    store.put(RunLayout.checkpoint_marker(snapshot.step), marker.to_json())
    return marker


def load_newest(store: Store, config_digest: str, log: RunLog) -> Snapshot | None:
    """The newest whole checkpoint, or None. One that is half-written or damaged is skipped with a
    warning and the one before is taken. Raises `UserError` where it belongs to another configuration.
    """
    for step in sorted(complete_steps(store), reverse=True):
        try:
            return _load(store, step, config_digest)
        except (NotFound, PermanentError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, NotFound) else str(error)
            log.event("warning", message=f"checkpoint {step} is skipped: {reason}")
    return None


def complete_steps(store: Store) -> list[int]:
    """Steps of all checkpoints that have a marker, ascending."""
    return [step for step, keys in _by_step(store).items() if RunLayout.checkpoint_marker(step) in keys]


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


def load_part(store: Store, step: int, part: str, config_digest: str) -> dict[str, Tensor]:
    """One part of the checkpoint of `step`. Raises `NotFound`, `PermanentError` where it is damaged,
    `UserError` where it belongs to another configuration."""
    marker = _marker(store, step, config_digest)
    if part not in marker.parts:
        raise NotFound(RunLayout.checkpoint_part(step, part))
    return _load_part(store, step, part, marker.parts[part])


def _load(store: Store, step: int, config_digest: str) -> Snapshot:
    marker = _marker(store, step, config_digest)
    parts = {part: _load_part(store, step, part, entry) for part, entry in marker.parts.items()}
    return Snapshot(marker.step, marker.loss, parts)


def _marker(store: Store, step: int, config_digest: str) -> CheckpointMarker:
    key = RunLayout.checkpoint_marker(step)
    marker = CheckpointMarker.from_json(store.get(key), source=f"{store.uri}/{key}")
    if marker.config_digest != config_digest:
        raise UserError(
            f"the checkpoint of step {step} in {store.uri} was written by another configuration",
            hint="take another run URI, or undo the change",
        )
    return marker


def _load_part(store: Store, step: int, part: str, entry: CheckpointPart) -> dict[str, Tensor]:
    key = RunLayout.checkpoint_part(step, part)
    data = store.get(key)
    if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise PermanentError(
            f"{key} is damaged: {len(data)} bytes, {entry.size_bytes} expected, or another digest"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise PermanentError(f"{key} is not a safetensors file: {error}") from error


def _by_step(store: Store) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for info in store.list(RunLayout.CHECKPOINTS):
        digits = info.key.removeprefix(RunLayout.CHECKPOINTS).partition("/")[0].removeprefix("step-")
        if digits.isdigit():
            found.setdefault(int(digits), []).append(info.key)
    return dict(sorted(found.items()))
