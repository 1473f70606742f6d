"""The dry run's figures are those of the reads that follow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eosin.config import load_config
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.check import check_patches
from eosin.patches.reading.tables import TileTables
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.storage import ByteRange, Store, open_store
from eosin.storage.ranged_reads import GAP_BYTES, plan_requests
from tests.support.patches import index_slides, paper_header, paper_row, paper_snapshot, write_slides


class Counting:
    """A store that counts what is read by range, and in as many requests as the store of a bucket makes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.num_bytes = self.num_requests = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        requests = plan_requests(ranges, gap_bytes=GAP_BYTES)
        self.num_bytes += sum(each.end - each.start for each in requests)
        self.num_requests += len(requests)
        return self._store.get_ranges(ranges)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("check")
    return index_slides(write_slides(folder / "slides", 3), folder / "index")


def test_bytes_and_requests_are_those_really_read(snapshot: Snapshot) -> None:
    settings = ["patches.patch_px=96", "patches.mpp=[0.25, 0.5]", "patches.tile_cache_bytes=0",
                "augment.global_px=96", "train.batch_size=64", "train.num_microbatches=8",
                "seed=5"]  # fmt: skip
    config = load_config("", overrides=settings)
    figures = check_patches(config, snapshot)
    store: Any = Counting(open_store(snapshot.slides_uri))
    sampler = Sampler(snapshot, config.patches, seed=5, split="train")
    with PatchStream(sampler, RunLog("test"), store=store, num_threads=1) as stream:
        for _ in stream.batches((0, [index]) for index in range(256)):
            pass
    assert figures["range_bytes_per_step"] == round(store.num_bytes / 256 * 64)
    assert figures["range_requests_per_step"] == round(store.num_requests / 256 * 64)
    assert figures["num_slides"] == len(sampler.slides) == 2


def test_staging_counts_a_slide_once_a_visit(snapshot: Snapshot) -> None:
    def figures(visit: int) -> dict[str, Any]:
        settings = [f"patches.patches_per_visit={visit}", "patches.patch_px=96", "patches.mpp=[0.25]"]
        return check_patches(
            load_config("", overrides=[*settings, "train.batch_size=64", "augment.global_px=96"]), snapshot
        )

    one, eight = figures(1), figures(8)
    assert one["stage_requests_per_step"] == 2 * 64 and eight["stage_requests_per_step"] == 2 * 8
    sizes = [row.size_bytes for row in snapshot.rows]
    assert 64 * min(sizes) <= one["stage_bytes_per_step"] <= 64 * max(sizes)


def test_cost_is_requests_and_bytes_at_the_prices(snapshot: Snapshot) -> None:
    prices = "patches.prices={usd_per_1000_requests: 2.0, usd_per_gb: 30.0}"
    figures = check_patches(
        load_config("", overrides=[prices, "train.num_steps=1000", "patches.mpp=[0.25]"]), snapshot
    )
    for way in ("range", "stage"):
        num_bytes, requests = figures[f"{way}_bytes_per_run"], figures[f"{way}_requests_per_run"]
        assert num_bytes == pytest.approx(1000 * figures[f"{way}_bytes_per_step"], rel=1e-3)
        assert figures[f"{way}_usd_per_run"] == pytest.approx(requests / 500 + num_bytes / 1e9 * 30, abs=0.01)
    assert figures["range_usd_per_run"] > 0


def test_rows_of_large_tile_tables_are_counted(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def requests() -> int:
        sizes = ["patches.patch_px=96", "augment.global_px=96"]
        config = load_config("", overrides=[*sizes, "patches.mpp=[0.25]", "seed=5"])
        return int(check_patches(config, snapshot)["range_requests_per_step"])

    small = requests()
    monkeypatch.setattr(TileTables.__init__, "__kwdefaults__", {"whole_up_to_tiles": 4})
    large = requests()
    assert large > 1.5 * small


def test_excluded_slides_are_named_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    rows = [paper_row("coarse.dcm", paper_header(4000, 4000, mpp=20.0))]
    with pytest.raises(UserError, match=r"coarse\.dcm: too-coarse"):
        check_patches(load_config(""), paper_snapshot(tmp_path, rows))
