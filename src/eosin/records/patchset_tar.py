"""Shard of a patch set as a tar by the webdataset library's convention.

A sample is two files of one name, its image (`.png` or `.jpg`) and what is known of it (`.json`); names
hold no other dot and are unique in the set. The tar has no times and no owners: the same rows, the same
bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise

from eosin.errors import PermanentError
from eosin.records.patchset_shard import PatchRow

_JPEG_MAGIC = b"\xff\xd8"


def encode_tar(rows: Sequence[PatchRow], stem: str) -> bytes:
    """Tar bytes of `rows`, samples `stem-000000`, `stem-000001`…"""
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
