"""Rows of many published parts in the order of slides, a few parts in memory at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from eosin.errors import UserError
from eosin.index.rows import SlideRow, SlideRows, load_rows
from eosin.storage import Store


class MergedRows:
    """Iterates over the rows of `keys` sorted by slide.

    The parts of a shard follow one another but for DICOM series, so a few parts a shard serve nearly
    every row; one that is needed again is read again. Memory is that of `num_held` parts and one name a
    slide. Raises `UserError` where a part is gone.
    """

    def __init__(self, store: Store, keys: Sequence[str], num_held: int) -> None:
        self._store, self._num_held = store, num_held
        self._held: OrderedDict[str, SlideRows] = OrderedDict()
        self._order = sorted(
            (slide, key, i)
            for key in keys
            for i, slide in enumerate(self._read(key).column("slide"))
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[SlideRow]:
        return (self._part(key)[i] for _, key, i in self._order)

    def _part(self, key: str) -> SlideRows:
        rows = self._held.pop(key, None) or self._read(key)
        self._held[key] = rows
        while len(self._held) > self._num_held:
            self._held.popitem(last=False)
        return rows

    def _read(self, key: str) -> SlideRows:
        rows = load_rows(self._store, key)
        if rows is None:
            raise UserError(
                f"{self._store.uri}/{key} is gone", hint="scan that shard again: eosin index --shard I/N"
            )
        return rows
