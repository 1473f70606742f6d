"""Folders of small slides, and indexes made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import eosin.index.plan as plan_module
import eosin.index.sources as sources_module
from eosin.config import RunConfig, load_config
from eosin.index.publish import publish_snapshot
from eosin.index.rows import SlideRow
from eosin.index.scan import scan_shard
from eosin.index.snapshot import open_snapshot
from eosin.layout import IndexLayout
from eosin.observability import RunLog
from eosin.records import SnapshotManifest
from eosin.slides.model import SlideHeader
from eosin.storage import S3Access, Store, open_store
from eosin.storage.settings import ENVIRONMENT
from tests.support.counting import CountingStore
from tests.support.slide_files import halved, tissue_picture, write_aperio

LOG = RunLog("test")


def make_slides(folder: Path, num: int = 4) -> Path:
    """`num` Aperio slides of two levels, each other than the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        pixels = tissue_picture(600 + 20 * i, 700, seed=i)
        write_aperio(folder / f"slide-{i}.svs", [pixels, halved(pixels, 1)], mpp=0.5, compression="jpeg")
    return folder


def bare_row(slide: str, patient: str = "", content: str = "") -> SlideRow:
    """A usable slide of which nothing is known but what is given."""
    header = SlideHeader((), "", "", (), None, None)
    return SlideRow(slide, "ok", "", header, patient=patient, content=content)


def as_plain(row: SlideRow) -> tuple[SlideRow, dict[str, object]]:
    """The row, and its mask with the bits at hand, wherever they lay: equal where all is equal."""
    mask = row.tissue
    return replace(row, tissue=None), {**vars(mask), "packed": bytes(mask.packed)} if mask else {}


def upload(folder: Path, uri: str) -> None:
    """Every file of a folder to the store at `uri`."""
    store = open_store(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_file(str(path.relative_to(folder)), path)


def config_for(slides: Path | str, index: Path | str, *settings: str) -> RunConfig:
    return load_config("", overrides=[f"slides.uri={slides}", f"index.uri={index}", *settings])


def index(config: RunConfig, num_shards: int = 1, order: Sequence[int] | None = None) -> SnapshotManifest:
    for shard in order or range(num_shards):
        scan_shard(config, shard, num_shards, LOG)
    return publish_snapshot(config, num_shards, LOG)


def snapshot_bytes(index_uri: Path | str) -> bytes:
    """The published rows of the newest snapshot."""
    key = IndexLayout.snapshot_rows(open_snapshot(str(index_uri)).manifest.snapshot_id)
    return open_store(str(index_uri)).get(key)


def rows_of(index_uri: Path | str) -> dict[str, SlideRow]:
    return {row.slide: row for row in open_snapshot(str(index_uri)).rows}


def statuses(index_uri: Path | str) -> dict[str, str]:
    return {name: row.status for name, row in rows_of(index_uri).items()}


def count_stores() -> Iterator[list[CountingStore]]:
    """Every store that a scan opens meanwhile, counted; the body of a fixture."""
    stores: list[CountingStore] = []

    def opened(uri: str, access: S3Access = ENVIRONMENT) -> Store:
        stores.append(CountingStore(open_store(uri, access)))
        return stores[-1]

    with (
        mock.patch.object(plan_module, "open_store", opened),
        mock.patch.object(sources_module, "open_store", opened),
    ):
        yield stores
