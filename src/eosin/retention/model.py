"""Findings of a collection, and how objects are grouped and aged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eosin.storage import ObjectInfo, Store, join_uri


@dataclass(frozen=True)
class Doomed:
    """Objects that nothing needs and that go together. `keys` are in the order of deletion."""

    uri: str
    reason: str
    keys: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class GcResult:
    """`deleted` says whether `doomed` was deleted or only listed; `kept` why something was left alone."""

    deleted: bool
    doomed: tuple[Doomed, ...]
    kept: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all that is doomed together."""
        return sum(each.size_bytes for each in self.doomed)

    def __str__(self) -> str:
        lines = [f"{_megabytes(each.size_bytes)}  {each.uri}  {each.reason}" for each in self.doomed]
        lines += [f"  kept: {reason}" for reason in self.kept]
        verb = "deleted" if self.deleted else "can go; add --delete to delete"
        num_objects = sum(len(each.keys) for each in self.doomed)
        return "\n".join([*lines, f"{num_objects} objects, {_megabytes(self.size_bytes).strip()}: {verb}"])


@dataclass(frozen=True)
class Age:
    """Nothing modified after `limit_s` (seconds since the epoch) is ever touched."""

    limit_s: float

    def is_young(self, objects: Iterable[ObjectInfo]) -> bool:
        """Whether any of `objects` is too young; what belongs together is as young as its youngest."""
        return any(each.modified_s > self.limit_s for each in objects)


def doom(store: Store, folder: str, objects: Sequence[ObjectInfo], reason: str, *, first: str = "") -> Doomed:
    """Objects to delete, the marker `first` before all others, so that a kill leaves no false whole."""
    keys = sorted((each.key for each in objects), key=lambda key: (key != first, key))
    size_bytes = sum(each.size_bytes for each in objects)
    return Doomed(join_uri(store.uri, folder), reason, tuple(keys), size_bytes)


def by_folder(objects: Iterable[ObjectInfo], prefix: str) -> dict[str, list[ObjectInfo]]:
    """Objects by the name of the folder they lie in right under `prefix`; loose ones are left out."""
    folders: dict[str, list[ObjectInfo]] = {}
    for each in objects:
        name, slash, _ = each.key.removeprefix(prefix).partition("/")
        if slash:
            folders.setdefault(name, []).append(each)
    return folders


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:10.1f} MB"
