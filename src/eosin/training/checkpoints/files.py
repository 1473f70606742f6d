"""The format of a checkpoint in the bucket, and its reading into a world of any size.

safetensors files, a receipt a rank, one marker:

    checkpoints/step-00000500/WORLD-00001-of-00008-000.safetensors    some tensors, or rows of them
    checkpoints/step-00000500/WORLD-00001-of-00008.json               receipt: what lies where, with digests
    checkpoints/step-00000500/COMPLETE.json                           names the receipts; published last

Names carry the world of processes that wrote them, so that no two worlds ever overwrite each other's files.
Reading is planned by torch.distributed.checkpoint, whose metadata is made from our receipts, which are JSON:
nothing from the bucket is ever unpickled. Rows are fetched by range, checked against their digest and copied
to where they belong, a few at a time.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
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
from eosin.records.base import Record
from eosin.storage import ByteRange, Store, join_uri
from eosin.training.checkpoints.state import TensorRows, TrainingState, flatten
from eosin.training.engine.parallel import local

# A file is held in memory while it is written.
_FILE_BYTES = 256 * 2**20


class StoredRows(BaseModel):
    """Rows of one tensor, and where their bytes are."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """`part/name`; the part is student, teacher, optimizer or loss."""
    dtype: str
    """As safetensors writes it: F32, BF16, I64."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first_row: int = 0
    """Number of the first of these rows in the whole tensor."""
    num_rows: int
    """0 for a tensor without dimensions."""
    file: int
    """Number of the file in the receipt's `files`."""
    start: int
    """Bytes into the file."""
    length: int
    """Of the rows, bytes."""
    sha256: str
    """Of these bytes."""


class ShareReceipt(Record):
    """What one rank has written."""

    files: tuple[str, ...]
    """Keys, relative to the run."""
    stored: tuple[StoredRows, ...]
    """Each piece of a tensor that the rank wrote: file, rows, shape, digest."""


class ReceiptEntry(BaseModel):
    """A receipt that a marker names."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    key: str
    """Of the receipt, relative to the run."""
    sha256: str
    """Of the receipt's bytes."""


class CheckpointMarker(Record):
    """`COMPLETE.json` of a checkpoint, published last."""

    step: int
    """Steps taken."""
    config_digest: str
    """Of what decides the training; a checkpoint of another is not read."""
    receipts: tuple[ReceiptEntry, ...] = Field(min_length=1)
    """One a rank."""
    size_bytes: int
    """Of all files together."""
    loss: float | None = None
    """Of the last step."""


def pack(snapshot: TrainingState) -> Iterator[tuple[bytes, list[StoredRows]]]:
    """The files of a snapshot, each of at most 256 MiB or of one tensor, and what lies in them."""
    for number, group in enumerate(_groups(snapshot)):
        data = save({name: tensor.contiguous() for name, tensor in group.items()})
        yield data, list(_describe(data, number, snapshot.rows))


def _groups(snapshot: TrainingState) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    for name, tensor in flatten(snapshot.parts).items():
        if not tensor.numel():  # no row of it is here
            continue
        if group and sum(t.nbytes for t in group.values()) + tensor.nbytes > _FILE_BYTES:
            yield group
            group = {}
        group[name] = tensor
    yield group


def _describe(data: bytes, file: int, rows: Mapping[str, TensorRows]) -> Iterator[StoredRows]:
    """Read back from a safetensors file where its tensors are: 8 bytes of length, a JSON header, the data."""
    header_bytes = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + header_bytes]).items():
        if name == "__metadata__":
            continue
        shape = tuple(entry["shape"])
        place = rows.get(name, TensorRows(0, shape))
        start, stop = (8 + header_bytes + offset for offset in entry["data_offsets"])
        yield StoredRows(
            name=name, dtype=entry["dtype"], shape=place.shape, first_row=place.first,
            num_rows=shape[0] if shape else 0, file=file, start=start, length=stop - start,
            sha256=hashlib.sha256(memoryview(data)[start:stop]).hexdigest(),
        )  # fmt: skip


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


def read_marker(store: Store, step: int, digests: Mapping[str, int]) -> CheckpointMarker:
    """The marker of step `step`, whose configuration is one of `RunConfig.digests`.

    Raises `NotFound`, `PermanentError` where it is damaged or of a course that had been changed before,
    `UserError` where it belongs to another configuration.
    """
    key = RunLayout.checkpoint_marker(step)
    data = store.get(key)
    marker = CheckpointMarker.from_json(data, source=join_uri(store.uri, key))
    if marker.config_digest not in digests:
        raise UserError(
            f"the checkpoint of step {step} in {store.uri} was written by another configuration",
            hint="take another run URI, or undo the change",
        )
    if step > (until := digests[marker.config_digest]):
        raise PermanentError(f"it was written by a world that trained on after the change at step {until}")
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
