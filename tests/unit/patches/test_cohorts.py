"""Weights of cohorts: shares as asked for, however many slides a cohort has, and plain about a wrong name."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.config import RunConfig, load_config
from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.rows import SlideRow
from eosin.patches.sampling.eligible import Split
from eosin.patches.sampling.sampler import Sampler
from tests.support.patches import paper_header, paper_row, paper_snapshot


def rows(**num_slides: int) -> list[SlideRow]:
    """So many slides of each cohort, each of its own patient; every second is twice as wide."""
    return [
        replace(
            paper_row(f"{name}-{i:02}.svs", paper_header(4000 * (1 + i % 2), 4000), patient=f"{name}-{i}"),
            cohort="" if name == "none" else name,
        )
        for name, num in num_slides.items()
        for i in range(num)
    ]


def sampler(folder: Path, made: list[SlideRow], split: Split = "train", **changes: object) -> Sampler:
    config = PatchesConfig.model_validate({"patch_px": 128, "mpp": (0.5,), **changes})
    return Sampler(paper_snapshot(folder, made), config, seed=11, split=split)


def shares(made: Sampler, num: int = 4000) -> dict[str, float]:
    drawn = made.draw_batch(0, range(num))
    counts = Counter(made.snapshot.rows[request.slide].cohort for request in drawn)
    return {name: count / num for name, count in counts.items()}


@pytest.mark.parametrize("weighting", ["slide", "area"])
def test_each_cohort_gets_its_share(tmp_path: Path, weighting: str) -> None:
    made = sampler(tmp_path, rows(big=40, small=4, none=10), weighting=weighting,
                   cohort_weights={"big": 1.0, "small": 2.5, "": 1.5})  # fmt: skip
    found = shares(made)
    assert found["big"] == pytest.approx(0.2, abs=0.03)
    assert found["small"] == pytest.approx(0.5, abs=0.04)
    assert found[""] == pytest.approx(0.3, abs=0.035)


def test_within_a_cohort_slides_are_drawn_by_the_weighting(tmp_path: Path) -> None:
    made = sampler(tmp_path, rows(one=12, other=12), weighting="area",
                   cohort_weights={"one": 1, "other": 1})  # fmt: skip
    drawn = [made.snapshot.rows[r.slide] for r in made.draw_batch(0, range(4000))]
    mine = [row for row in drawn if row.cohort == "one"]
    used = [row for row in made.snapshot.rows if row.cohort == "one"]
    used = [row for row in used if row.slide in {each.slide for each in mine}]
    wide = sum(row.tissue_mm2 for row in used if row.header.levels[0].width_px == 8000)
    expected = wide / sum(row.tissue_mm2 for row in used)
    found = np.mean([row.header.levels[0].width_px == 8000 for row in mine])
    assert found == pytest.approx(expected, abs=0.04)


def test_a_cohort_that_is_not_named_gives_none_and_the_held_out_set_stays(tmp_path: Path) -> None:
    made = rows(a=10, b=10)
    weights = {"a": 3.0, "b": 0.0}
    assert shares(sampler(tmp_path, made, cohort_weights=weights), 200) == {"a": 1.0}
    assert shares(sampler(tmp_path, made, cohort_weights={"a": 3.0}), 200) == {"a": 1.0}
    weighted, plain = (sampler(tmp_path, made, "heldout", cohort_weights=each) for each in (weights, None))
    assert weighted.draw_batch(3, range(50)) == plain.draw_batch(3, range(50))


def test_draws_are_pure_and_a_fraction_counts_the_weighted_slides(tmp_path: Path) -> None:
    made = rows(a=20, b=20, c=20)
    changes: dict[str, Any] = {"cohort_weights": {"a": 1.0, "c": 2.0}, "slide_fraction": 0.5}
    first, second = (sampler(tmp_path, made, **changes) for _ in range(2))
    whole = first.draw_batch(5, range(60))
    assert tuple(second.draw(5, i) for i in range(60)) == whole
    every = sampler(tmp_path, made, cohort_weights={"a": 1.0, "c": 2.0})
    assert len(first.slides) == np.ceil(len(every.slides) / 2)
    assert set(first.slides) < set(every.slides)


def test_an_unknown_cohort_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tcga-brac'") as raised:
        sampler(tmp_path, rows(gtex=4, none=2), cohort_weights={"gtex": 1, "tcga-brac": 1})
    assert "'', 'gtex'" in raised.value.hint
    with pytest.raises(UserError, match="no slide of the index has a cohort"):
        sampler(tmp_path, rows(none=4), cohort_weights={"gtex": 1})


def test_a_cohort_none_of_whose_slides_serve_is_refused(tmp_path: Path) -> None:
    made = [*rows(a=4), replace(paper_row("b.svs", paper_header(4000, 4000, mpp=9.0)), cohort="b")]
    with pytest.raises(UserError, match="no slide of cohort 'b' can be trained on"):
        sampler(tmp_path, made, cohort_weights={"a": 1, "b": 1})
    assert shares(sampler(tmp_path, made, cohort_weights={"a": 1, "b": 0}), 50) == {"a": 1.0}


@pytest.mark.parametrize("bad", ["{}", "{a: 0}", "{a: -1}", "{a: .inf}", "{a: much}"])
def test_weights_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(UserError, match="cohort_weights"):
        load_config("", overrides=[f"patches.cohort_weights={bad}"])


def test_no_weights_keep_the_digest_of_a_run() -> None:
    assert load_config("patches: {cohort_weights: null}").digest() == RunConfig().digest()
