"""Patches from S3: those of the local files, in the same order, whatever the connection does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eosin.config import load_config
from eosin.config.patches import GridConfig, PatchesConfig
from eosin.demo.server import LocalS3
from eosin.errors import TransientError
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.request import PatchBatch
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.sets.decode import decode_grid, decode_sampled
from eosin.patches.sets.set_spec import Decoding
from eosin.patches.stream import PatchStream
from eosin.records import PatchSetManifest
from eosin.storage import join_uri, open_store
from tests.support.faults import Fault, FaultProxy, script, seeded
from tests.support.patches import index_slides, paper_snapshot, write_slides

WANTED = [(step, range(4)) for step in range(20)]
EVERYTHING = [Fault.SLOW_DOWN, Fault.RESET, Fault.LOSE_ANSWER, Fault.TRUNCATE, Fault.SHORT, Fault.DELAY]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 2)


@pytest.fixture
def local(slides: Path, tmp_path: Path) -> Snapshot:
    return index_slides(slides, tmp_path / "index")


@pytest.fixture
def remote(slides: Path, local: Snapshot, bucket_uri: str, tmp_path: Path) -> Snapshot:
    """The same slides in a bucket; their rows carry the bucket's etags."""
    uri = join_uri(bucket_uri, "some slides")
    store, rows = open_store(uri), []
    for row in local.rows:
        etag = store.put_file(row.slide, slides / row.slide).etag
        objects = (replace(row.header.objects[0], etag=etag),)
        rows.append(replace(row, header=replace(row.header, objects=objects)))
    return paper_snapshot(tmp_path / "index", rows, uri)


def read(snapshot: Snapshot, **changes: object) -> list[PatchBatch]:
    values = {"patch_px": 96, "mpp": (0.25, 0.5), "tile_cache_bytes": 0, **changes}
    sampler = Sampler(snapshot, PatchesConfig.model_validate(values), seed=6)
    with PatchStream(sampler, RunLog("test")) as stream:
        return list(stream.batches(WANTED))


def assert_same(ours: list[PatchBatch], theirs: list[PatchBatch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.requests == b.requests and np.array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize("reader", ["range", "stage"])
def test_a_bucket_gives_the_patches_of_the_files(
    local: Snapshot, remote: Snapshot, reader: str, tmp_path: Path
) -> None:
    assert_same(read(remote, reader=reader, stage_dir=str(tmp_path / "stage")), read(local))


@pytest.mark.parametrize("reader", ["range", "stage"])
def test_faults_change_neither_the_patches_nor_their_order(
    local: Snapshot,
    remote: Snapshot,
    reader: str,
    tmp_path: Path,
    s3: LocalS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EOSIN_RETRY_BASE_S", "0.002")
    monkeypatch.setenv("EOSIN_RETRY_CAP_S", "0.02")
    with FaultProxy(s3.endpoint_url, seeded(3, 0.4, *EVERYTHING), delay_s=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        harmed = read(remote, reader=reader, stage_dir=str(tmp_path / "stage"))
        assert sum(fault is not Fault.NONE for _, _, fault in proxy.seen) > (1 if reader == "stage" else 12)
    assert_same(harmed, read(local))


@pytest.mark.parametrize("kind", ["grid", "sampled"])
def test_faults_do_not_change_a_decoded_set(
    local: Snapshot, remote: Snapshot, kind: str, tmp_path: Path, bucket_uri: str, s3: LocalS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EOSIN_RETRY_BASE_S", "0.002")
    monkeypatch.setenv("EOSIN_RETRY_CAP_S", "0.02")
    whole = decode(local, str(tmp_path / "run"), kind)
    with FaultProxy(s3.endpoint_url, seeded(5, 0.3, *EVERYTHING), delay_s=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        harmed = decode(remote, join_uri(bucket_uri, "run"), kind)
        assert sum(fault is not Fault.NONE for _, _, fault in proxy.seen) > 5
    assert harmed == whole and whole.num_patches > 20


def decode(snapshot: Snapshot, run: str, kind: str) -> PatchSetManifest:
    spec = {"grid": "{mpp: 0.5, patches_per_shard: 16}",
            "sampled": "{kind: sampled, num_patches: 24, patches_per_shard: 10}"}[kind]  # fmt: skip
    sizes = ["patches.patch_px=96", "augment.global_px=96", "patches.mpp=[0.5]"]
    config = load_config("", overrides=[*sizes, f"patches.sets.a={spec}"])
    wanted = config.patches.sets["a"]
    job = Decoding(open_store(run), config, snapshot, "a", wanted, 0, 1)
    if isinstance(wanted, GridConfig):
        manifest = decode_grid(job, wanted, RunLog("test"))
    else:
        manifest = decode_sampled(job, wanted, RunLog("test"))
    assert manifest is not None
    return manifest


def test_a_store_that_stays_away_ends_the_stream_with_a_transient_error(
    remote: Snapshot, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOSIN_RETRY_BASE_S", "0.002")
    monkeypatch.setenv("EOSIN_RETRY_CAP_S", "0.02")
    with FaultProxy(s3.endpoint_url, script(*[Fault.SLOW_DOWN] * 10_000)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        with pytest.raises(TransientError):
            read(remote)
