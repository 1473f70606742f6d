"""The format of a checkpoint in the bucket: safetensors files, a receipt a rank, one marker.

    checkpoints/step-00000500/WORLD-00001-of-00008-000.safetensors    some tensors, or rows of them
    checkpoints/step-00000500/WORLD-00001-of-00008.json               receipt: what lies where, with digests
    checkpoints/step-00000500/COMPLETE.json                           names the receipts; published last

Names carry the world of processes that wrote them, so that no two worlds ever overwrite each other's files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import Tensor

from eosin.records.base import Record
from eosin.training.checkpoints.state import TensorRows, TrainingState, flatten

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
