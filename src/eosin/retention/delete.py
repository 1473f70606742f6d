"""Deletion of one run or study with all that it published, and nothing else."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from eosin.errors import UserError
from eosin.layout import COMPLETE, TEACHER_CARD, RunLayout
from eosin.registry.entries import list_entries
from eosin.storage import ObjectInfo, Store, join_uri, open_store
from eosin.words import counted, first_of, size_text

AT_WORK_S = 600.0
"""A run that wrote within so many seconds, and has not ended, may still be at work."""
_FOLDERS = tuple(
    value
    for name, value in vars(RunLayout).items()
    if name.isupper() and isinstance(value, str) and value.endswith("/")
)
_FILES = frozenset(
    value
    for name, value in vars(RunLayout).items()
    if name.isupper() and isinstance(value, str) and not value.endswith("/")
)
_ALSO = ("summary/", "tensorboard/", "slide-indexes/", "failures/")
_MARKERS = (COMPLETE, TEACHER_CARD, "manifest.json")
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Deletion:
    """What was deleted, or, `deleted` False, would be; `kept` is what lies there and is not the run's."""

    run: str
    deleted: bool
    num_objects: int
    size_bytes: int
    by_folder: dict[str, int]
    """Objects by the first part of their key."""
    kept: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{number:>8}  {folder}" for folder, number in self.by_folder.items()]
        if self.kept:
            lines.append(f"kept, since no run publishes it: {first_of(self.kept, _NAMES_SHOWN)}")
        total = f"{counted(self.num_objects, 'object')} of {self.run}, {size_text(self.size_bytes)}"
        if self.deleted:
            return "\n".join([*lines, f"{total}: deleted; its index stays, for other runs may read it"])
        return "\n".join(
            [*lines, f"{total}: would be deleted", f"next: eosin delete {quote(self.run)} --yes"]
        )


def delete_run(
    run_uri: str, *, delete: bool = False, force: bool = False, registries: Sequence[str] = ()
) -> Deletion:
    """List what a run published, or delete it. What of other origin lies at its place is left alone.

    A killed deletion is gone on with by the same call: markers go first, the configuration last. Raises
    `UserError` where `run_uri` is no run; and, unless `force`, where it may be at work or a model of
    `registries` came from it.
    """
    store = open_store(run_uri)
    objects = list(store.list())
    if not any(each.key == RunLayout.CONFIG for each in objects):
        raise _no_run(run_uri, objects)
    if run_uri.startswith("s3://") and "/" not in run_uri.rstrip("/").removeprefix("s3://") and not force:
        raise UserError(
            f"{run_uri} is a whole bucket, whose folders may be others'",
            hint="look at what would go, then --force",
        )
    own = [each for each in objects if _is_own(each.key)]
    kept = tuple(each.key for each in objects if not _is_own(each.key))
    if not force:
        _refuse_at_work(run_uri, own)
        _refuse_registered(run_uri, registries)
    if delete:
        _delete(store, [each.key for each in own])
    by_folder = dict(Counter("".join(each.key.partition("/")[:2]) for each in own))
    size_bytes = sum(each.size_bytes for each in own)
    return Deletion(run_uri, delete, len(own), size_bytes, by_folder, kept)


def _is_own(key: str) -> bool:
    """Whether a run publishes objects of this key; of a study also those of its runs."""
    if key.startswith(RunLayout.VARIANTS):
        return _is_own(key.split("/", 2)[-1])
    return key in _FILES or key.startswith((*_FOLDERS, *_ALSO))


def _no_run(run_uri: str, objects: Sequence[ObjectInfo]) -> UserError:
    message = f"there is no run at {run_uri}: {RunLayout.CONFIG} is not there"
    runs = sorted(
        each.key.removesuffix(f"/{RunLayout.CONFIG}")
        for each in objects
        if each.key.endswith(f"/{RunLayout.CONFIG}") and not each.key.startswith(RunLayout.VARIANTS)
    )
    if runs:
        named = first_of([join_uri(run_uri, name) for name in runs], _NAMES_SHOWN)
        return UserError(message, hint=f"name one of the runs in it: {named}")
    above = [run_uri.rstrip("/").rsplit("/", depth)[0] for depth in (1, 2, 3)]
    inside = next((uri for uri in above if uri.count("/") > 2 and _is_run(uri)), "")
    if inside and objects:
        return UserError(message, hint=f"it is a part of the run {inside}, which is deleted as a whole")
    return UserError(message, hint="check the URI; nothing was deleted")


def _is_run(uri: str) -> bool:
    try:
        return open_store(uri).exists(RunLayout.CONFIG)
    except UserError:
        return False


def _refuse_at_work(run_uri: str, own: Sequence[ObjectInfo]) -> None:
    ended = any(each.key == RunLayout.SUMMARY_JSON for each in own)
    written = [each.modified_s for each in own if each.key != RunLayout.CONFIG]
    age_s = time.time() - max(written, default=0.0)
    if not ended and age_s < AT_WORK_S:
        raise UserError(
            f"run {run_uri} wrote {max(age_s, 0):.0f} s ago and has not ended: it may be at work",
            hint=f"stop it first (Ctrl-C, or eosin cancel {quote(run_uri)}); where nothing runs any "
            "more: --force",
        )


def _refuse_registered(run_uri: str, registries: Sequence[str]) -> None:
    whole = join_uri(run_uri).rstrip("/")
    for uri in registries:
        for each in list_entries(uri):
            used = [version.version for version in each.versions if version.run.rstrip("/") == whole]
            if used:
                raise UserError(
                    f"version {used[0]} of {each.name} in {uri} is a teacher of this run",
                    hint="with it gone that version cannot be rolled back to; --force deletes it even so",
                )


def _delete(store: Store, keys: Sequence[str]) -> None:
    """Markers first, so that a kill leaves nothing that looks whole; the configuration last, so that the
    same call finds the rest."""
    last = [key for key in keys if key == RunLayout.CONFIG]
    markers = [key for key in keys if key.rpartition("/")[2] in _MARKERS or key in _FILES - set(last)]
    done = {*last, *markers}
    store.delete(markers)
    store.delete([key for key in keys if key not in done])
    store.delete(last)
