"""What the report says training draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.storage import open_store
from eosin.summary.data_view import view_draws
from tests.support.summary import slide_row, write_index

SIX_SIGMA = 6 * (0.5 * 0.5 / 4096) ** 0.5


def snapshot(folder: Path) -> Snapshot:
    rows = [
        replace(slide_row(f"{name}.svs", mpp=0.25, patient=name), cohort="breast" if name < "c" else "lung")
        for name in "abcdef"
    ]
    uri = f"file://{folder}/index"
    write_index(open_store(f"file://{folder}/run"), uri, rows)
    return open_snapshot(uri, "0123456789abcdef")


def config(**patches: Any) -> RunConfig:
    patches = {"heldout": {"fraction": 0}, **patches}
    augment = {"global_px": 64, "local_px": 32}
    return RunConfig.model_validate(
        {"slides": {"uri": "s3://b/slides"}, "patches": patches, "augment": augment}
    )


def test_shares_follow_the_weights(tmp_path: Path) -> None:
    weights = {"mpp": [0.25, 0.5, 1.0], "mpp_weights": [6, 3, 1], "cohort_weights": {"breast": 1, "lung": 4}}
    view = view_draws(config(**weights, patch_px=64), snapshot(tmp_path))
    assert view is not None and view.num_draws == 4096 and view.num_slides == 6
    assert dict(view.by_mpp) == pytest.approx({"0.25": 0.6, "0.5": 0.3, "1": 0.1}, abs=SIX_SIGMA)
    assert dict(view.by_cohort) == pytest.approx({"lung": 0.8, "breast": 0.2}, abs=SIX_SIGMA)
    assert view.most_drawn[0] in {"c.svs", "d.svs", "e.svs", "f.svs"}


def test_a_range_is_shown_in_bins_that_fill_alike(tmp_path: Path) -> None:
    view = view_draws(config(mpp_range=[0.25, 1.0], patch_px=64), snapshot(tmp_path))
    assert view is not None
    assert [label for label, _ in view.by_mpp][::11] == ["0.25–0.28", "0.89–1.00"]
    assert [share for _, share in view.by_mpp] == pytest.approx([1 / 12] * 12, abs=SIX_SIGMA)
    assert sum(share for _, share in view.by_mpp) == pytest.approx(1)


def test_without_slides_to_draw_from_there_is_nothing_to_show(tmp_path: Path) -> None:
    slides = snapshot(tmp_path)
    assert view_draws(config(source="s3://b/run/patches/train/"), slides) is None
    assert view_draws(config(mpp=[0.01]), slides) is None
