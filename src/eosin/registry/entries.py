"""Entries of a registry, read and replaced."""

from collections.abc import Callable
from datetime import UTC, datetime
from shlex import quote
from typing import Literal

from eosin.errors import UserError
from eosin.layout import RegistryLayout
from eosin.records import RegisteredModel, RegistryEntry, RegistryMove, load_record, update_record
from eosin.storage import open_store

# Given the entry as it stands (None: there is none), the one to put in its place; None: leave it.
Change = Callable[[RegistryEntry | None], RegistryEntry | None]


def read_entry(registry_uri: str, name: str) -> RegistryEntry | None:
    """The entry of `name`; None where no model was ever promoted under it."""
    return load_record(RegistryEntry, open_store(registry_uri), _key(name))


def find_entry(registry_uri: str, name: str) -> RegistryEntry:
    """As `read_entry`. Raises `UserError` naming what is there where `name` is not."""
    entry = read_entry(registry_uri, name)
    if entry is None:
        raise _unknown(registry_uri, name)
    return entry


def list_entries(registry_uri: str, name: str = "") -> list[RegistryEntry]:
    """Every entry by name, or only that of `name`, which must be there."""
    names = [name] if name else _names(registry_uri)
    return [find_entry(registry_uri, each) for each in names]


def change_entry(registry_uri: str, name: str, change: Change) -> RegistryEntry | None:
    """Replace the entry by what `change` makes of it; returns what stands then.

    One put, on condition that nobody replaced the entry since it was read. Where somebody did, `change`
    is called again with what they wrote, so no move is ever lost. Raises `TransientError` where others
    keep moving it.
    """
    return update_record(RegistryEntry, open_store(registry_uri), _key(name), change)


def roll_back(registry_uri: str, name: str, *, to: int | None = None, why: str = "") -> RegistryEntry:
    """Point `name` to version `to` again, or to the one that was current before the present one.

    The version left stays in the entry. Raises `UserError` where there is no such version.
    """
    # Settled once: told again by a lost race, "the one before" would be another.
    before = find_entry(registry_uri, name)
    version = _version_before(before) if to is None else to
    if not 1 <= version <= len(before.versions):
        raise UserError(
            f"{name} has no version {version}",
            hint=f"it has 1 to {len(before.versions)}: `eosin registry show {quote(registry_uri)} "
            f"{quote(name)}`",
        )

    def change(entry: RegistryEntry | None) -> RegistryEntry | None:
        if entry is None:
            raise _unknown(registry_uri, name)
        if entry.current == version:
            return None
        if to is None and entry.history != before.history:
            raise UserError(
                f"{name} was moved meanwhile, to version {entry.current}",
                hint="say which version you want: --to N",
            )
        return moved(entry, "rollback", version, (why,) if why else ())

    changed = change_entry(registry_uri, name, change)
    assert changed is not None
    return changed


def added(
    entry: RegistryEntry | None, name: str, model: RegisteredModel, why: tuple[str, ...]
) -> RegistryEntry:
    """`entry` with `model` as a further version, the current one; its number is given here."""
    versions = entry.versions if entry else ()
    version = len(versions) + 1
    model = model.model_copy(update={"version": version})
    return RegistryEntry(
        name=name,
        current=version,
        versions=(*versions, model),
        history=(*(entry.history if entry else ()), _move("promote", version, why)),
    )


def moved(
    entry: RegistryEntry, action: Literal["promote", "rollback"], version: int, why: tuple[str, ...]
) -> RegistryEntry:
    """`entry` pointing to a version that it has."""
    history = (*entry.history, _move(action, version, why))
    return entry.model_copy(update={"current": version, "history": history})


def _move(action: Literal["promote", "rollback"], version: int, why: tuple[str, ...]) -> RegistryMove:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return RegistryMove(time=time, action=action, version=version, why=why)


def _version_before(entry: RegistryEntry) -> int:
    """The version current before the present one was promoted: a second rollback goes further back."""
    first = next(i for i, move in enumerate(entry.history)
                 if move.action == "promote" and move.version == entry.current)  # fmt: skip
    if first == 0:
        raise UserError(f"{entry.name} has no version before {entry.current}", hint="name one with --to")
    return entry.history[first - 1].version


def _key(name: str) -> str:
    if not RegistryLayout.is_name(name):
        raise UserError(
            f"{name!r} cannot be the name of a model",
            hint="take lower-case letters, digits and hyphens, at most 63, e.g. vits16-he",
        )
    return RegistryLayout.entry(name)


def _names(registry_uri: str) -> list[str]:
    keys = (info.key for info in open_store(registry_uri).list(RegistryLayout.MODELS))
    return sorted(name for key in keys if (name := RegistryLayout.name_of(key)))


def _unknown(registry_uri: str, name: str) -> UserError:
    names = ", ".join(_names(registry_uri)) or "none yet"
    return UserError(f"registry {registry_uri} has no model {name}", hint=f"there are: {names}")
