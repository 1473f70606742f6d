"""Listing of the slides' folder, and which objects make up a slide."""

import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from eosin.errors import UserError
from eosin.slides.header import HEAD_BYTES, begins_as_slide
from eosin.storage import AccessDenied, ByteRange, NotFound, ObjectChanged, ObjectInfo, Store
from eosin.storage.file import FileStore

# Names that say something else than a slide; where an object of such a name is one, all of that name are
# told by their content.
_OTHER_NAMES = {
    ".csv", ".json", ".jsonl", ".txt", ".md", ".geojson", ".parquet", ".xml", ".yaml", ".yml", ".html",
    ".log", ".pdf", ".tsv", ".xlsx", ".zip", ".gz", ".tar", ".py", ".npy", ".npz", ".h5", ".pt",
    ".safetensors", ".md5", ".sha256", ".ini", ".svg",
}  # fmt: skip
# What is not uploaded whole, or belongs to a slide that nothing here reads.
_NEVER_SLIDES = {".part", ".tmp", ".ets"}
# Names that say a format other than DICOM: what else an object is, its content says.
_SLIDE_NAMES = {
    ".svs", ".tif", ".tiff", ".btf", ".tf8", ".ndpi", ".scn", ".bif", ".qptiff", ".czi", ".vsi", ".mrxs",
    ".vms", ".vmu", ".isyntax", ".i2syntax", ".lif", ".nd2", ".afi", ".svslide",
}  # fmt: skip
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".heic"}
_CLAIM_NONE = _OTHER_NAMES | _PICTURES
_LOOKED_AT_ONCE = 32
_MOST_LOOKED_AT = 1024
_DIGESTED_AT_ONCE = 1024
_MRXS, _MRXS_INDEX = ".mrxs", "Slidedat.ini"
_VMS, _VMS_PARTS = (".vms", ".vmu"), (".jpg", ".opt", ".vmf", ".ngr")


@dataclass(frozen=True, slots=True)
class Unit:
    """Objects read together, the main one first."""

    key: str
    """Decides the shard: the slide's key, or the folder of unsorted objects."""
    kind: Literal["slide", "unsorted"]
    """slide: by its name; unsorted: objects of one folder whose content tells which slides they are."""
    objects: tuple[ObjectInfo, ...]


def list_units(
    listing: Iterable[ObjectInfo], include: Sequence[str] = (), store: Store | None = None
) -> tuple[list[Unit], int]:
    """Every object of a listing that could be a slide, grouped, in key order, and how many pictures are not.

    Hidden objects, folder markers and unfinished uploads are passed over, and what has the name of another
    type, unless `store` holds a slide of that name; `include` keeps the keys that match any of its globs
    (all, where it is empty).
    """
    listed = [each for each in listing if _is_whole(each.key)]
    objects = [each for each in listed if suffix_of(each.key) not in _OTHER_NAMES or _is_mirax(each.key)]
    owners = _owners([each.key for each in objects])
    mains = [each for each in listed if each.key not in owners and is_included(each.key, include)]
    wrong = (
        suffixes_of((each for each in mains if _claims_none(each.key)), _is_slide_in(store)) if store else ()
    )
    members: dict[str, list[ObjectInfo]] = {}
    for each in objects:
        for owner in owners.get(each.key, ()):
            members.setdefault(owner, []).append(each)
    folders: dict[str, list[ObjectInfo]] = {}
    units: list[Unit] = []
    num_pictures = 0
    for each in mains:
        suffix = suffix_of(each.key)
        if _claims_none(each.key) and suffix not in wrong:
            num_pictures += suffix in _PICTURES
        elif suffix in _SLIDE_NAMES or _is_mirax(each.key):
            units.append(Unit(each.key, "slide", (each, *members.get(each.key, ()))))
        else:
            folders.setdefault(str(PurePosixPath(each.key).parent), []).append(each)
    units += [Unit(folder, "unsorted", tuple(files)) for folder, files in folders.items()]
    return sorted(units, key=lambda unit: unit.objects[0].key), num_pictures


def suffixes_of(
    objects: Iterable[ObjectInfo], wanted: Callable[[ObjectInfo], bool], num_threads: int = _LOOKED_AT_ONCE
) -> set[str]:
    """Suffixes of objects that are `wanted`: 1,024 of each at most are looked at, spread evenly."""
    alike: dict[str, list[ObjectInfo]] = {}
    for each in objects:
        alike.setdefault(suffix_of(each.key), []).append(each)
    seen = [each for some in alike.values() for each in some[:: -(-len(some) // _MOST_LOOKED_AT)]]
    with ThreadPoolExecutor(num_threads, "look") as pool:
        return {
            suffix_of(each.key) for each, found in zip(seen, pool.map(wanted, seen), strict=True) if found
        }


def head_of(store: Store, info: ObjectInfo, num_bytes: int = HEAD_BYTES) -> bytes:
    """The first `num_bytes`, or all; none where there are less than 132, or they cannot be read now."""
    if info.size_bytes >= HEAD_BYTES:
        with suppress(ObjectChanged, NotFound, AccessDenied):
            wanted = ByteRange(info.key, 0, min(num_bytes, info.size_bytes), info.etag)
            return store.get_ranges([wanted])[0]
    return b""


def _is_slide_in(store: Store) -> Callable[[ObjectInfo], bool]:
    return lambda each: begins_as_slide(head_of(store, each))


def claims_other(key: str) -> bool:
    """Whether the name says that the object is a slide of a format other than DICOM."""
    return suffix_of(key) in _SLIDE_NAMES


def claims_slide(key: str) -> bool:
    """Whether the name says that the object is a slide, so that another content is a fault to be named."""
    return claims_other(key) or suffix_of(key) in (".dcm", ".dicom")


def require_slide(store: Store, include: Sequence[str] = (), prefix: str = "") -> None:
    """Raises `UserError` saying why, where `list_units` would find nothing; reads no more than it must.

    `prefix` stands before the keys that `include` is held against.
    """
    first = other = None
    unlikely: list[ObjectInfo] = []
    for each in store.list():
        included = is_included(prefix + each.key, include)
        if could_be_slide(each.key):
            if included:
                return
            first = first or each.key
        elif included and _is_whole(each.key):
            unlikely.append(each)
        other = other or each.key
    if suffixes_of(unlikely, _is_slide_in(store)):
        return
    message = f"there is no slide in {store.uri}"
    if first is not None:
        patterns = ", ".join(include)
        raise UserError(
            f"{message} that slides.include ({patterns}) names", hint=f"the first key is {prefix}{first}"
        )
    if other is not None:
        raise UserError(f"{message}: {other} and what else is there cannot be one", hint="check slides.uri")
    raise _nothing_at(store, message)


def _nothing_at(store: Store, message: str) -> UserError:
    """A folder that is not there, a file in its place, an empty folder or prefix."""
    if not isinstance(store, FileStore):
        return UserError(f"{message}: no object has that prefix", hint="check the bucket and the prefix")
    folder = store.root
    if folder.is_file():
        return UserError(f"{message}: it is a file", hint=f"name its folder: {folder.parent}")
    if folder.is_dir():
        return UserError(f"{message}: the folder is empty", hint="check slides.uri")
    near: list[str] = []
    with suppress(OSError):
        names = [each.name for each in folder.parent.iterdir() if each.is_dir()]
        near = difflib.get_close_matches(folder.name, names, n=1)
    hint = f"did you mean {folder.parent / near[0]}?" if near else "check slides.uri"
    return UserError(f"{message}: there is no such folder", hint=hint)


def listing_digest(units: Iterable[Unit]) -> str:
    """SHA-256 over key, size and etag of every object, in order: of the JSON of all as one list."""
    digest, comma = hashlib.sha256(b"["), ""
    objects = ([each.key, each.size_bytes, each.etag] for unit in units for each in unit.objects)
    while some := list(itertools.islice(objects, _DIGESTED_AT_ONCE)):
        digest.update((comma + json.dumps(some)[1:-1]).encode())
        comma = ", "
    digest.update(b"]")
    return digest.hexdigest()


def in_shard(unit: Unit, shard: int, num_shards: int) -> bool:
    """Whether a unit is this shard's: a stable hash of its key."""
    word = hashlib.sha256(unit.key.encode()).digest()[:8]
    return int.from_bytes(word, "big") % num_shards == shard


def could_be_slide(key: str) -> bool:
    """Whether an object may be of a slide, as far as its name tells."""
    return _is_whole(key) and not _claims_none(key)


def _is_whole(key: str) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(key).parts)
    return not key.endswith("/") and not hidden and suffix_of(key) not in _NEVER_SLIDES


def _claims_none(key: str) -> bool:
    return suffix_of(key) in _CLAIM_NONE and not _is_mirax(key)


def _is_mirax(key: str) -> bool:
    return PurePosixPath(key).name == _MRXS_INDEX


def suffix_of(key: str) -> str:
    """The end of a name, from its last dot on, in lower case."""
    return PurePosixPath(key).suffix.lower()


def is_included(key: str, include: Sequence[str]) -> bool:
    """Whether `key` matches one of the patterns `include`; of none, everything is meant."""
    return not include or any(fnmatchcase(key, pattern) for pattern in include)


def folder_of_parts(key: str) -> str | None:
    """Where the other objects of a slide of several lie, ending in /; None for a slide of one."""
    path = PurePosixPath(key)
    if suffix_of(key) == _MRXS:
        return f"{path.with_suffix('')}/"
    return f"{path.parent}/" if suffix_of(key) in _VMS else None


def _owners(keys: Sequence[str]) -> dict[str, list[str]]:
    """The main object, or objects, of every object that belongs to a slide of several."""
    mirax = {str(PurePosixPath(key).with_suffix("")): key for key in keys if key.lower().endswith(_MRXS)}
    # What is left of a MIRAX slide without its first object is one broken slide, not one a data file.
    for key in keys:
        if PurePosixPath(key).name == _MRXS_INDEX:
            mirax.setdefault(str(PurePosixPath(key).parent), key)
    hamamatsu: dict[str, list[str]] = {}
    for key in keys:
        if key.lower().endswith(_VMS):
            hamamatsu.setdefault(str(PurePosixPath(key).parent), []).append(key)
    owners: dict[str, list[str]] = {}
    for key in keys:
        path = PurePosixPath(key)
        folder = str(path.parent)
        if folder in mirax and mirax[folder] != key:
            owners[key] = [mirax[folder]]
        elif folder in hamamatsu and path.suffix.lower() in _VMS_PARTS:
            owners[key] = _named_alike(path, hamamatsu[folder])
    return owners


def _named_alike(part: PurePosixPath, slides: Sequence[str]) -> list[str]:
    """Of the slides in a folder, the one whose name the part's begins with; all, where none is meant."""
    stems = {slide: PurePosixPath(slide).stem for slide in slides}
    alike = [slide for slide in slides if part.name.startswith(stems[slide])]
    return [max(alike, key=lambda slide: len(stems[slide]))] if alike else list(slides)
