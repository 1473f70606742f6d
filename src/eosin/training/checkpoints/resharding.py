"""Reading a checkpoint into a world of any size, by the load planning of torch.distributed.checkpoint.

Its metadata is made from our receipts, which are JSON: nothing from the bucket is ever unpickled. Rows are
fetched by range, checked against their digest and copied to where they belong, a few at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from eosin.errors import PermanentError, UserError
from eosin.layout import RunLayout
from eosin.storage import ByteRange, Store, join_uri
from eosin.training.checkpoints.files import CheckpointMarker, ShareReceipt, StoredRows
from eosin.training.engine.parallel import local

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Fetched at once, at least one tensor's rows.
_BATCH_BYTES = 256 * 2**20


class Stored:
    """Everything a checkpoint holds, by `part/name`, and where its bytes are."""

    def __init__(self, receipts: Iterable[ShareReceipt]) -> None:
        self._by_name: dict[str, list[tuple[StoredRows, str]]] = defaultdict(list)
        for receipt in receipts:
            for rows in receipt.stored:
                self._by_name[rows.name].append((rows, receipt.files[rows.file]))

    def metadata(self) -> Metadata:
        """As torch.distributed.checkpoint describes a checkpoint."""
        return Metadata({name: _tensor_metadata([rows for rows, _ in found])
                         for name, found in self._by_name.items()})  # fmt: skip

    def find(self, item: ReadItem) -> tuple[StoredRows, str]:
        """The rows that `item` reads from, and the key of their file."""
        index = item.storage_index
        assert index.index is not None
        return self._by_name[index.fqn][index.index]

    def empty(self, part: str) -> dict[str, Tensor]:
        """Tensors of one part on the host, whole and not yet filled."""
        return {
            name: torch.empty(found[0][0].shape, dtype=_DTYPES[found[0][0].dtype])
            for name, found in self._by_name.items()
            if name.partition("/")[0] == part
        }


def read_marker(store: Store, step: int, config_digest: str) -> CheckpointMarker:
    """Raises `NotFound`, `PermanentError` where it is damaged, `UserError` where it belongs to another
    configuration."""
    key = RunLayout.checkpoint_marker(step)
    data = store.get(key)
    marker = CheckpointMarker.from_json(data, source=join_uri(store.uri, key))
    if marker.config_digest != config_digest:
        raise UserError(
            f"the checkpoint of step {step} in {store.uri} was written by another configuration",
            hint="take another run URI, or undo the change",
        )
    return marker


def read_stored(store: Store, marker: CheckpointMarker) -> Stored:
    """What the receipts of `marker` say. Raises `NotFound`, `PermanentError` where one is damaged."""
    receipts = []
    for entry in marker.receipts:
        data = store.get(entry.key)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PermanentError(f"{entry.key} is damaged: another digest than its marker names")
        receipts.append(ShareReceipt.from_json(data, source=join_uri(store.uri, entry.key)))
    return Stored(receipts)


def read_part(store: Store, marker: CheckpointMarker, part: str) -> dict[str, Tensor]:
    """The tensors of one part (student, teacher, optimizer, loss), whole, on the host."""
    stored = read_stored(store, marker)
    tensors = stored.empty(part)
    put(fetch(store, stored, tensors))
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items()}


@torch.no_grad()
def put(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy what `fetch` returned to where it belongs."""
    for target, value in values:
        target.copy_(value)


@torch.no_grad()
def fetch(store: Store, stored: Stored, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What this rank holds of `tensors` (by `part/name`, whole or sharded): views of them, values for them.

    Nothing is changed, so that another checkpoint can be tried. Takes host memory for the rank's own part.
    Raises `NotFound` where a file is missing, `PermanentError` where bytes are damaged or a tensor is not
    there, not whole or of another shape.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(tensors), stored.metadata(), is_coordinator=True)
    try:
        items = planner.create_local_plan().items
    except (RuntimeError, ValueError) as error:
        raise PermanentError(f"it does not fit the network of this run: {error}") from error
    found: list[tuple[Tensor, Tensor]] = []
    for batch in _batches(items, stored):
        sources = [stored.find(item) for item in batch]
        ranges = [ByteRange(key, rows.start, rows.length) for rows, key in sources]
        for item, (rows, key), data in zip(batch, sources, store.get_ranges(ranges), strict=True):
            values = _decode(rows, key, data)
            for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                values = values.narrow(dim, start, length)
            # A narrow view would keep all of the rows in memory.
            part = values.clone() if values.numel() * values.element_size() < len(data) else values
            found.append((planner.resolve_tensor(item), part))
    _require_filled(tensors, found)
    return found


def _batches(items: Iterable[ReadItem], stored: Stored) -> Iterator[list[ReadItem]]:
    """Reads in the order in which their bytes lie, so many at a time as memory allows."""

    def place(item: ReadItem) -> tuple[str, int]:
        rows, key = stored.find(item)
        return key, rows.start

    batch: list[ReadItem] = []
    size = 0
    for item in sorted(items, key=place):
        if not math.prod(item.lengths):
            continue
        length = stored.find(item)[0].length
        if batch and size + length > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _require_filled(tensors: Mapping[str, Tensor], found: list[tuple[Tensor, Tensor]]) -> None:
    wanted = sum(local(tensor).numel() for tensor in tensors.values())
    read = sum(value.numel() for _, value in found)
    if wanted != read:
        raise PermanentError(f"it holds {read} of the {wanted} values that are wanted")


def _decode(rows: StoredRows, key: str, data: bytes) -> Tensor:
    if hashlib.sha256(data).hexdigest() != rows.sha256:
        raise PermanentError(
            f"{key} is damaged: {rows.name} has {len(data)} bytes, {rows.length} expected, or another digest"
        )
    shape = (rows.num_rows, *rows.shape[1:]) if rows.shape else ()
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[rows.dtype]).view(shape)


def _tensor_metadata(found: list[StoredRows]) -> TensorStorageMetadata:
    shape = found[0].shape
    chunks = [
        ChunkStorageMetadata(
            torch.Size([rows.first_row, *[0] * (len(shape) - 1)] if shape else []),
            torch.Size([rows.num_rows, *shape[1:]] if shape else []),
        )
        for rows in found
    ]
    properties = TensorProperties(dtype=_DTYPES[found[0].dtype])
    return TensorStorageMetadata(properties, torch.Size(shape), chunks)
