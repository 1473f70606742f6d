"""Rows of a scan's shards in order of slides: each part fetched once, a few of them in memory."""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eosin.errors import UserError
from eosin.index.rows import ROWS_WITH_MASKS, decode_table
from eosin.storage import NotFound, Store

_FETCHED_AT_ONCE = 16


class MergedParts:
    """The rows of the parts `keys`, sorted by slide; they lie in a temporary file until the context ends.

    The parts of a shard follow one another but for DICOM series, so `num_held` of a few a shard serve nearly
    every row; one that is needed again is decoded again. Memory is that of these and of one name a slide.
    Raises `UserError` where a part is gone, `PermanentError` where it holds no rows.
    """

    def __init__(self, store: Store, keys: Sequence[str], num_held: int) -> None:
        self._store, self._keys = store, keys
        self._file = tempfile.TemporaryFile(prefix="eosin-index-")  # noqa: SIM115  # closed by __exit__
        self._places: list[tuple[int, int]] = []
        self._part = lru_cache(num_held)(self._decoded)

    def __enter__(self) -> "MergedParts":
        slides = [pa.array([], pa.string())]
        with ThreadPoolExecutor(_FETCHED_AT_ONCE, "merge") as pool:
            for start in range(0, len(self._keys), _FETCHED_AT_ONCE):
                some = self._keys[start : start + _FETCHED_AT_ONCE]
                for key, data in zip(some, pool.map(self._fetched, some), strict=True):
                    self._places.append((self._file.tell(), self._file.write(data)))
                    slides += decode_table(data, self._named(key), ("slide",)).column(0).chunks
        self._ends = np.cumsum([len(each) for each in slides[1:]], dtype=np.int64)
        self._order = pc.sort_indices(pa.chunked_array(slides)).to_numpy().astype(np.int64)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._order)

    def tables(self) -> Iterator[pa.Table]:
        """All rows, masks in them, 512 at a time."""
        for start in range(0, len(self), ROWS_WITH_MASKS):
            wanted = self._order[start : start + ROWS_WITH_MASKS]
            there = np.sort(wanted)
            parts = np.searchsorted(self._ends, there, side="right")
            taken = [
                self._part(part).take(pa.array(there[parts == part] - self._first(part)))
                for part in np.unique(parts).tolist()
            ]
            yield pa.concat_tables(taken).take(pa.array(np.searchsorted(there, wanted))).combine_chunks()

    def _first(self, part: int) -> int:
        return int(self._ends[part - 1]) if part else 0

    def _decoded(self, part: int) -> pa.Table:
        start, size = self._places[part]
        self._file.seek(start)
        return decode_table(self._file.read(size), self._named(self._keys[part]))

    def _fetched(self, key: str) -> bytes:
        try:
            return self._store.get(key)
        except NotFound:
            raise UserError(
                f"{self._named(key)} is gone", hint="scan that shard again: eosin index --shard I/N"
            ) from None

    def _named(self, key: str) -> str:
        return f"{self._store.uri}/{key}"
