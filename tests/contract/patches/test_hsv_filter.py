"""The look at decoded patches: in HSV, redrawn by the same pure function, counted, never an error."""

import colorsys
from typing import Any

import numpy as np
import pytest

from eosin.config import RunConfig, load_config
from eosin.config.patches import HsvFilterConfig, PatchesConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.observability import RunLog
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import MAX_ATTEMPTS, PatchStream, share_in_range
from eosin.slides.errors import SlideError
from tests.support.patches import index_slides, write_slides


class Log(RunLog):
    """Keeps events instead of printing them."""

    def __init__(self) -> None:
        super().__init__("test")
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, /, **fields: Any) -> None:
        self.events.append({"event": name, **fields})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("hsv")
    return index_slides(write_slides(folder / "slides", 3), folder / "index")


def sampler(snapshot: Snapshot, **hsv: object) -> Sampler:
    tree = {"patch_px": 64, "mpp": (0.5,), "hsv_filter": hsv, "min_foreground": 0.1}
    return Sampler(snapshot, PatchesConfig.model_validate(tree), seed=9)


def read(made: Sampler, indices: Any, num_threads: int = 2, log: RunLog | None = None) -> PatchBatch:
    with PatchStream(made, log or Log(), num_threads=num_threads) as stream:
        (batch,) = stream.batches([(4, indices)])
    return batch


def halves(snapshot: Snapshot) -> dict[str, object]:
    """A filter that rejects about half of what is drawn."""
    plain = read(sampler(snapshot, min_share=0.0), range(64)).pixels
    config = HsvFilterConfig(saturation=(60, 255))
    shares = [share_in_range(patch, config) for patch in plain]
    return {"saturation": (60, 255), "min_share": float(np.median(shares)) + 1e-6}


def test_the_share_is_that_of_the_definition() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    hits = 0
    for red, green, blue in pixels.reshape(-1, 3) / 255.0:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        hits += round(hue * 180) >= 90 and saturation * 255 >= 8 and value * 255 >= 103
    assert share_in_range(pixels, HsvFilterConfig()) == pytest.approx(hits / 1600, abs=0.01)
    eosin = np.full((8, 8, 3), (225, 120, 180), np.uint8)
    assert share_in_range(eosin, HsvFilterConfig()) == 1.0
    assert share_in_range(np.full_like(eosin, 245), HsvFilterConfig()) == 0.0  # glass
    assert share_in_range(np.full_like(eosin, (40, 160, 60)), HsvFilterConfig()) == 0.0  # green pen


def test_a_rejected_patch_is_its_next_draw_that_passes(snapshot: Snapshot) -> None:
    made, plain = sampler(snapshot, **halves(snapshot)), sampler(snapshot, min_share=0.0)
    config = made.config.hsv_filter
    assert config is not None
    batch = read(made, range(48))
    assert len({request.attempt for request in batch.requests}) > 2
    for request, pixels in zip(batch.requests, batch.pixels, strict=True):
        assert share_in_range(pixels, config) >= config.min_share
        assert request == plain.draw(4, request.index, request.attempt)
    first = read(plain, range(48))
    for request, pixels in zip(first.requests, first.pixels, strict=True):
        passed = share_in_range(pixels, config) >= config.min_share
        assert (batch.requests[request.index].attempt == 0) == passed


def test_batches_and_threads_change_nothing(snapshot: Snapshot) -> None:
    made = sampler(snapshot, **halves(snapshot))
    whole = read(made, range(40), num_threads=3)
    part = read(made, [31, 2, 17], num_threads=1)
    assert part.requests == tuple(whole.requests[i] for i in (31, 2, 17))
    assert np.array_equal(part.pixels, whole.pixels[[31, 2, 17]])


def test_rejections_are_counted_and_are_no_errors(snapshot: Snapshot) -> None:
    log = Log()
    errors: list[tuple[PatchRequest, SlideError]] = []
    made = sampler(snapshot, **halves(snapshot))
    with PatchStream(made, log, on_reject=lambda *failure: errors.append(failure)) as stream:
        (batch,) = stream.batches([(4, range(48))])
    assert not errors and [event["event"] for event in log.events] == ["hsv-filter"]
    redrawn = sum(request.attempt for request in batch.requests)
    assert log.events[0] == {"event": "hsv-filter", "seen": 48 + redrawn, "rejected": redrawn,
                             "kept_anyway": 0}  # fmt: skip


def test_where_nothing_passes_the_best_draw_is_taken(snapshot: Snapshot) -> None:
    log, made = Log(), sampler(snapshot, min_share=1.0, saturation=(150, 255))
    config = made.config.hsv_filter
    assert config is not None
    batch = read(made, range(3), log=log)
    assert log.events[-1]["kept_anyway"] == 3 and log.events[-1]["rejected"] == 3 * MAX_ATTEMPTS
    with PatchStream(sampler(snapshot, min_share=0.0), Log()) as stream:
        for request, pixels in zip(batch.requests, batch.pixels, strict=True):
            drawn = [made.draw(4, request.index, attempt) for attempt in range(MAX_ATTEMPTS)]
            shares = [share_in_range(patch, config) for patch in stream._reader.read(drawn)]  # type: ignore[arg-type]
            assert request.attempt == int(np.argmax(shares))
            assert share_in_range(pixels, config) == max(shares)


@pytest.mark.parametrize("bad", ["{hue: [90, 181]}", "{value: [200, 100]}", "{min_share: 1.5}"])
def test_thresholds_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(UserError, match=r"patches\.hsv_filter"):
        load_config("", overrides=[f"patches.hsv_filter={bad}"])


def test_no_filter_keeps_the_digest_of_a_run_and_its_defaults_change_it() -> None:
    assert load_config("patches: {hsv_filter: null}").digest() == RunConfig().digest()
    assert load_config("patches: {hsv_filter: {}}").digest() != RunConfig().digest()
