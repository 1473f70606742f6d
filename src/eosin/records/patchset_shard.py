"""Shard of a patch set, as Parquet or as a tar: the same rows, the same bytes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import PermanentError
from eosin.records.parquet import read_table

_PARQUET_MAGIC = b"PAR1"
_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("slide", pa.string()),
        ("patient", pa.string()),
        ("x_px", pa.int64()),
        ("y_px", pa.int64()),
        ("mpp", pa.float64()),
        ("foreground", pa.float32()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class PatchRow:
    """One decoded patch: `image` is PNG or JPEG bytes; `x_px`, `y_px` its corner in the level-0 frame."""

    image: bytes
    slide: str
    x_px: int
    y_px: int
    mpp: float
    foreground: float
    patient: str = ""
    label: str = ""
    """Empty: not labelled."""
    split: str = ""
    """train, val, test, or empty."""
    sha256: str = ""
    """Of `image`; worked out where it is not given."""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.image).hexdigest())


def encode_shard(rows: Sequence[PatchRow], format: str = "parquet", stem: str = "shard") -> bytes:
    """The bytes of a shard of `rows`, in order.

    `format`: parquet, or webdataset: a tar whose samples are called `stem` and their number.
    """
    if format == "webdataset":
        return encode_tar(rows, stem)
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA)
    buffer = io.BytesIO()
    # Images are not compressed twice.
    compression = {name: "none" if name == "image" else "zstd" for name in _SCHEMA.names}
    pq.write_table(table, buffer, compression=compression, use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def decode_shard(data: bytes, *, source: str) -> list[PatchRow]:
    """The rows of a shard, whichever its format. Raises `PermanentError` naming `source` where the bytes
    are not one."""
    if not data.startswith(_PARQUET_MAGIC):
        return decode_tar(data, source=source)
    try:
        table = read_table(data).select(_SCHEMA.names).cast(_SCHEMA)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise PermanentError(f"{source} is not a patch-set shard: {error}") from error
    return [PatchRow(**row) for row in table.to_pylist()]


_JPEG_MAGIC = b"\xff\xd8"


def encode_tar(rows: Sequence[PatchRow], stem: str) -> bytes:
    """Tar bytes of `rows` by the webdataset library's convention, samples `stem-000000`, `stem-000001`…

    A sample is two files of one name, its image (`.png` or `.jpg`) and what is known of it (`.json`); names
    hold no other dot and are unique in the set. The tar has no times and no owners: the same rows, the same
    bytes.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, row in enumerate(rows):
            name = f"{stem}-{number:06d}"
            known = asdict(row)
            image = known.pop("image")
            _add(tar, f"{name}.{'jpg' if image.startswith(_JPEG_MAGIC) else 'png'}", image)
            _add(tar, f"{name}.json", json.dumps(known, ensure_ascii=False, sort_keys=True).encode())
    return buffer.getvalue()


def decode_tar(data: bytes, *, source: str) -> list[PatchRow]:
    """The rows of a tar from `encode_tar`. Raises `PermanentError` naming `source` where it is none."""
    try:
        files = list(_files(data))
        pairs = list(pairwise(files))[::2]
        if len(files) % 2 or any(_name(image) != _name(known) for (image, _), (known, _) in pairs):
            raise ValueError("images and their descriptions are not in pairs")
        return [PatchRow(image=image, **json.loads(known)) for (_, image), (_, known) in pairs]
    except (tarfile.TarError, ValueError, TypeError, EOFError) as error:
        raise PermanentError(f"{source} is not a patch-set shard: {error}") from error


def _files(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                raise ValueError(f"{member.name} is no file")
            yield member.name, file.read()


def _name(file: str) -> str:
    return file.partition(".")[0]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
