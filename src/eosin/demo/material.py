"""Material of the demo: slides in a bucket, and the settings that go with them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eosin.errors import UserError
from eosin.storage import Store, join_uri, open_store, read_object
from eosin.storage.atomic import translate

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Material:
    """The slides of a demo, in the bucket, and the settings that they bring."""

    name: str
    slides_uri: str
    digest: str
    """Of the names and sizes of what lies there."""
    settings: tuple[str, ...]


def synthetic_material(root: str) -> Material:
    """Put the demo's generated slides and labelled patches into the bucket."""
    from eosin.demo.synthetic import SyntheticConfig, write_dataset

    store = open_store(join_uri(root, SYNTHETIC))
    write_dataset(store.uri, SyntheticConfig(labelled_patients=18), progress=_bar("slides generated"))
    digest = _digest([(info.key, info.size_bytes) for info in store.list()])
    labelled = join_uri(store.uri, "labelled")
    tasks = [
        {"kind": "unsupervised", "name": "heldout"},
        {"kind": "knn", "name": "textures-knn", "dataset": labelled},
        {"kind": "linear-probe", "name": "textures-linear", "dataset": labelled,
         # eva's 12,500 steps at 3e-4, shortened to as many at a rate that gets there.
         "probe": {"num_steps": 2000, "lr": 0.01, "weight_decay": 0.0}},
    ]  # fmt: skip
    settings = (
        f"slides.overrides={json.dumps(join_uri(store.uri, 'overrides.csv'))}",
        f"evaluate.tasks={json.dumps(tasks)}",
    )
    return Material(SYNTHETIC, join_uri(store.uri, "slides"), digest, settings)


def users_material(root: str, slides: str, overrides: str) -> Material:
    """The user's slides: a local file or folder is put into the bucket, an s3:// URI is read where it is."""
    if slides.startswith("s3://"):
        listed = [(info.key, info.size_bytes) for info in open_store(slides).list()]
        if not listed:
            raise UserError(f"there is no object under {slides}", hint="check the bucket and the prefix")
        digest = _digest(listed)
        uri = slides
    else:
        path = Path(slides).expanduser()
        files = list(_local_files(path))
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10]
        store = open_store(join_uri(root, f"slides-{name}"))
        digest = upload(store, files)
        uri = store.uri
    settings: tuple[str, ...] = ()
    if overrides:
        settings = (f"slides.overrides={json.dumps(_published(root, overrides))}",)
    return Material("user", uri, digest, settings)


def upload(store: Store, files: list[tuple[str, Path]]) -> str:
    """Make the store hold exactly `files` ((key, path) pairs); what is there unchanged stays.

    Returns a digest of names and sizes. Raises `UserError` where a file cannot be read.
    """
    there = {info.key: info for info in store.list()}
    advance = _bar("files in the bucket")
    for number, (key, path) in enumerate(files, start=1):
        try:
            same = key in there and there[key].size_bytes == path.stat().st_size
            if not (same and there[key].modified_s >= path.stat().st_mtime):
                store.put_file(key, path)
        except OSError as error:
            raise translate(error, "read", path) from error
        advance(number, len(files))
    store.delete([key for key in there if key not in dict(files)])
    return _digest([(key, path.stat().st_size) for key, path in files])


def _local_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    if not path.is_dir():
        raise UserError(f"there are no slides at {path}", hint="name a file, a folder or an s3:// URI")
    # Not `rglob`, which passes over a folder that it may not read without a word.
    keys = [info.key for info in open_store(str(path)).list()]
    shown = [key for key in keys if not any(part.startswith(".") for part in key.split("/"))]
    if not shown:
        raise UserError(f"{path} holds no file", hint="name a folder of slides")
    for key in shown:
        yield key, path / key


def _published(root: str, overrides: str) -> str:
    """The CSV's bytes under a name of their own in the bucket: a corrected one is another run's."""
    data = read_object(overrides, absent=f"there is no CSV at {overrides}", hint="check --overrides")
    store = open_store(join_uri(root, "overrides"))
    key = f"{hashlib.sha256(data).hexdigest()[:10]}.csv"
    store.put(key, data)
    return join_uri(store.uri, key)


def _digest(listed: list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(sorted(listed)).encode()).hexdigest()


def _bar(unit: str) -> Callable[[int, int], None]:
    """A counter on standard error: one line that grows on a terminal, few lines otherwise."""

    def advance(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r  {done}/{total} {unit}", end=end, file=sys.stderr, flush=True)
        elif done == total or done % 4 == 0:
            print(f"  {done}/{total} {unit}", file=sys.stderr, flush=True)

    return advance
