"""Continuous magnification: uniform in log mpp, as far as each slide goes, and pure."""

from pathlib import Path

import numpy as np
import pytest

from eosin.config import RunConfig, load_config
from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.rows import SlideRow
from eosin.patches.geometry import best_level, box_of, fits
from eosin.patches.sampling.sampler import Sampler
from tests.support.patches import paper_header, paper_row, paper_snapshot


def sampler(folder: Path, rows: list[SlideRow], **changes: object) -> Sampler:
    config = PatchesConfig.model_validate({"patch_px": 128, "mpp_range": (0.3, 2.4), **changes})
    return Sampler(paper_snapshot(folder, rows), config, seed=6)


def test_mpp_is_uniform_in_its_logarithm(tmp_path: Path) -> None:
    rows = [paper_row(f"{i}.svs", paper_header(6000, 5000)) for i in range(3)]
    drawn = np.log([r.mpp for r in sampler(tmp_path, rows).draw_batch(2, range(3000))])
    counts = np.histogram(drawn, bins=10, range=(np.log(0.3), np.log(2.4)))[0]
    assert counts.sum() == 3000 and ((counts - 300) ** 2 / 300).sum() < 33.7  # 9 degrees, p = 0.0001


def test_a_draw_is_pure_and_free_of_its_batch(tmp_path: Path) -> None:
    rows = [paper_row(f"{i}.svs", paper_header(6000, 5000)) for i in range(3)]
    first, second = sampler(tmp_path, rows), sampler(tmp_path, rows)
    whole = first.draw_batch(7, range(50))
    assert tuple(second.draw(7, i) for i in range(50)) == whole
    assert len({r.mpp for r in whole}) == 50
    assert first.draw(7, 3, attempt=2).mpp != whole[3].mpp


def test_a_slide_gives_what_it_has_of_the_range(tmp_path: Path) -> None:
    rows = [
        paper_row("coarse.svs", paper_header(9000, 9000, mpp=1.1)),
        paper_row("narrow.svs", paper_header(317, 6000)),
        paper_row("speck.svs", paper_header(16000, 16000), np.arange(64).reshape(8, 8) == 5),
    ]
    made = sampler(tmp_path, rows, min_foreground=1.0)
    drawn = made.draw_batch(0, range(900))
    ends = {}
    for number, row in enumerate(made.snapshot.rows):
        mpps = [r.mpp for r in drawn if r.slide == number]
        ends[number] = min(mpps), max(mpps)
        assert all(best_level(row.header, mpp, 0.1) is not None for mpp in mpps)
        assert all(fits(row.header, 128, mpp) for mpp in mpps)
    assert ends[0] == pytest.approx((1.0, 2.4), rel=0.03)  # 1.1 mpp serves to a tenth finer
    assert ends[1] == pytest.approx((0.3, 317 * 0.25 / 128), rel=0.03)
    assert ends[2][1] <= 2.4
    for request in drawn:
        header = made.snapshot.rows[request.slide].header
        box = box_of(request, header, 128, 0.1)
        level = header.levels[box.level]
        assert box.x_px + box.width_px <= level.width_px and box.y_px + box.height_px <= level.height_px


def test_slides_outside_the_range_are_named_with_their_reason(tmp_path: Path) -> None:
    rows = [
        paper_row("broken.svs", paper_header(4000, 4000), status="corrupt-header", detail="no directory"),
        paper_row("coarse.svs", paper_header(4000, 4000, mpp=3.0)),
        paper_row("good.svs", paper_header(4000, 4000)),
        paper_row("small.svs", paper_header(100, 4000)),
    ]
    assert sampler(tmp_path, rows).excluded == {
        "broken.svs": "corrupt-header: no directory",
        "coarse.svs": "too-coarse: finest level 3 mpp, wanted ≤ 2.4",
        "small.svs": "too-small: 100 × 4000 px, a patch of 128 px at 0.3 mpp needs 154 px",
    }


@pytest.mark.parametrize(
    "bad", ["[1.0, 0.5]", "[0, 1]", "[0.5, 0.5]", "[0.5, 1.0]\npatches.mpp_weights=[1,1,1,1]"]
)
def test_a_range_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(UserError, match="mpp_range"):
        load_config("", overrides=f"patches.mpp_range={bad}".splitlines())


def test_without_a_range_a_run_keeps_its_digest() -> None:
    explicit = load_config("patches: {mpp_range: null}")
    assert explicit.digest() == RunConfig().digest()
    assert load_config("patches: {mpp_range: [0.25, 2]}").digest() != explicit.digest()
