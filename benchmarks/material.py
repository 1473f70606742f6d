"""What the benchmarks read, and how they measure: generated slides with tiles as heavy as a scanner's, CPU
time of this process, medians of interleaved rounds."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from eosin.config import RunConfig, load_config
from eosin.config.patches import PatchesConfig
from eosin.demo.synthetic import SyntheticConfig, publish_slide
from eosin.index.publish import publish_snapshot
from eosin.index.scan import scan_shard
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.observability import RunLog
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.storage import open_store

PATCH_PX = 224
BATCH = 30
# At this quality a tile of 240 px has some 13 kB, like those of a scanner; at 80 the drawn ones have 5.
_QUALITY = 95


def write_slides(folder: Path, num: int, side_px: int) -> Path:
    """SVS of levels 1/4/16 at 0.25 mpp, 240 px JPEG tiles, 4:2:0."""
    config = SyntheticConfig(width_px=side_px, height_px=side_px, quality=_QUALITY)
    for seed in range(num):
        publish_slide(open_store(str(folder)), f"{seed:04d}.svs", seed=seed, config=config)
    return folder


def index_slides(slides_uri: str, index_uri: str, *settings: str) -> Snapshot:
    config: RunConfig = load_config(
        "", overrides=[f"slides.uri={slides_uri}", f"index.uri={index_uri}", *settings]
    )
    scan_shard(config, 0, 1, RunLog("index"))
    publish_snapshot(config, 1, RunLog("index"))
    return open_snapshot(index_uri)


def sampler_of(snapshot: Snapshot, *mpp: float) -> Sampler:
    return Sampler(snapshot, PatchesConfig(patch_px=PATCH_PX, mpp=mpp), seed=0)


def stream_all(sampler: Sampler, steps: Iterable[int], *, num_threads: int | None = None) -> None:
    """Draw, read and drop the batches of `steps`."""
    with PatchStream(sampler, RunLog("benchmark"), num_threads=num_threads) as patches:
        for _ in patches.batches((step, range(BATCH)) for step in steps):
            pass


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds that `work` costs this process, all threads together."""
    before_s = time.process_time()
    work()
    return time.process_time() - before_s


def wall_s(work: Callable[[], object]) -> float:
    before_s = time.perf_counter()
    work()
    return time.perf_counter() - before_s


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Of rounds that ran side by side, so that what else the machine does hits both."""
    return round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def load() -> float:
    """Processes that wanted a core during the last minute."""
    return round(os.getloadavg()[0], 1)
