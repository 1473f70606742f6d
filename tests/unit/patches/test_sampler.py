"""The sampler: a pure function, uniform, inside the slide, on tissue, and plain about what it leaves out."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.config.patches import HeldOutConfig, PatchesConfig
from eosin.errors import UserError
from eosin.patches.geometry import best_level, box_of, extent_px
from eosin.patches.sampling.eligible import offers_of, why_excluded
from eosin.patches.sampling.sampler import Sampler
from tests.support.patches import paper_header, paper_row, paper_snapshot


def sampler(folder: Path, rows: list, split: str = "all", seed: int = 3, **changes: object) -> Sampler:
    config = PatchesConfig.model_validate({"patch_px": 128, "mpp": (0.25, 0.5), **changes})
    return Sampler(paper_snapshot(folder, rows), config, seed=seed, split=split)  # type: ignore[arg-type]


def slides(num: int, width_px: int = 4000, height_px: int = 3000) -> list:
    return [paper_row(f"{i}.svs", paper_header(width_px, height_px), patient=f"p{i}") for i in range(num)]


def test_a_draw_is_pure_and_free_of_its_batch(tmp_path: Path) -> None:
    first, second = (sampler(tmp_path, slides(7), patches_per_visit=4) for _ in range(2))
    whole = first.draw_batch(11, range(40))
    assert second.draw_batch(11, list(reversed(range(40)))) == whole[::-1]
    assert tuple(second.draw(11, i) for i in range(40)) == whole
    assert first.draw(11, 5, attempt=1) == second.draw(11, 5, attempt=1) != whole[5]
    assert len({(r.slide, r.x_px, r.y_px) for r in whole}) == 40


@pytest.mark.parametrize("wanted", [
    {"mpp": (0.25, 0.5, 1.0, 2.0)}, {"mpp": (0.5,), "mpp_tolerance": 0.3}, {"mpp_range": (0.3, 1.1)},
    {"mpp_range": (0.25, 2.0), "min_foreground": 0.0},
])  # fmt: skip
def test_what_slides_offer_all_at_once_is_what_each_offers_by_itself(
    tmp_path: Path, wanted: dict[str, object]
) -> None:
    rng, rows = np.random.default_rng(4), []
    for i in range(400):
        header = paper_header(
            *rng.integers(200, 9000, 2).tolist(), mpp=float(rng.choice([0.12, 0.25, 0.5, 1.1]))
        )
        mask = rng.random((16, 16)) < rng.choice([0.0, 0.01, 0.2, 0.9])
        rows.append(
            paper_row(f"{i:03d}.svs", header, mask, status=str(rng.choice(["ok", "ok", "ok", "no-mpp"])))
        )
    snapshot = paper_snapshot(tmp_path, rows)
    config = PatchesConfig.model_validate({"patch_px": 224, **wanted})
    found, offered = offers_of(snapshot, config)
    reasons = {i: why_excluded(row, config) for i, row in enumerate(snapshot.rows)}
    assert found.tolist() == [i for i, reason in reasons.items() if not reason] and 50 < len(found) < 350
    for number, offer in zip(found.tolist(), offered.tolist(), strict=True):
        for mpp, share in zip(config.mpp, offer, strict=True) if config.mpp_range is None else ():
            alone = config.model_copy(update={"mpp": (mpp,)})
            assert bool(share) == (not why_excluded(snapshot.rows[number], alone))
    if config.mpp_range is not None:
        assert (offered[:, 0] <= offered[:, 1]).all() and (offered >= config.mpp_range[0]).all()
    excluded = Sampler(snapshot, config, seed=1).excluded
    assert excluded == {row.slide: reasons[i] for i, row in enumerate(snapshot.rows) if reasons[i]}


def test_seed_and_step_change_the_draw(tmp_path: Path) -> None:
    drawn = sampler(tmp_path, slides(5)).draw(4, 2)
    assert drawn != sampler(tmp_path, slides(5), seed=4).draw(4, 2)
    again = sampler(tmp_path, slides(5)).draw(5, 2)
    assert (drawn.slide, drawn.x_px, drawn.y_px) != (again.slide, again.x_px, again.y_px)


def test_slides_and_mpps_are_drawn_by_their_weights(tmp_path: Path) -> None:
    drawn = sampler(tmp_path, slides(6), mpp_weights=(3.0, 1.0)).draw_batch(0, range(3000))
    counts = np.array([Counter(r.slide for r in drawn)[i] for i in range(6)])
    assert ((counts - 500) ** 2 / 500).sum() < 25.7  # 5 degrees of freedom, p = 0.0001
    assert abs(np.mean([r.mpp == 0.25 for r in drawn]) - 0.75) < 0.035


def test_area_weighting_follows_the_tissue(tmp_path: Path) -> None:
    mask = np.zeros((16, 16), bool)
    mask[:, :4] = True
    rows = [
        paper_row("quarter.svs", paper_header(4000, 4000), mask),
        paper_row("whole.svs", paper_header(4000, 4000)),
    ]
    drawn = sampler(tmp_path, rows, weighting="area").draw_batch(0, range(2000))
    assert abs(np.mean([r.slide == 0 for r in drawn]) - 0.2) < 0.04


def test_positions_are_uniform_over_the_slide_and_stay_inside(tmp_path: Path) -> None:
    drawn = sampler(tmp_path, slides(1, 4001, 2999), mpp=(0.5,)).draw_batch(0, range(3000))
    x, y = np.array([r.x_px for r in drawn]), np.array([r.y_px for r in drawn])
    assert x.min() >= 0 and x.max() <= 4001 - 256 and y.min() >= 0 and y.max() <= 2999 - 256
    for values, last in ((x, 4001 - 256), (y, 2999 - 256)):
        counts = np.histogram(values, bins=10, range=(0, last + 1))[0]
        assert ((counts - 300) ** 2 / 300).sum() < 33.7


def test_a_slide_exactly_as_large_as_a_patch_gives_its_one_position(tmp_path: Path) -> None:
    drawn = sampler(tmp_path, slides(1, 256, 256), mpp=(0.5,)).draw_batch(0, range(20))
    assert {(r.x_px, r.y_px) for r in drawn} == {(0, 0)}


def test_every_patch_has_the_tissue_asked_for(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:20, 50:64] = True
    rows = [paper_row("a.svs", paper_header(8000, 6000), mask)]
    made = sampler(tmp_path, rows, min_foreground=0.7)
    for request in made.draw_batch(0, range(200)):
        row = made.snapshot.rows[0]
        side = 128 * request.mpp / 0.25
        assert row.tissue is not None
        assert row.tissue.fraction(request.x_px, request.y_px, side, side) >= 0.7


def test_positions_on_tissue_are_uniform_over_those_that_qualify(tmp_path: Path) -> None:
    mask = np.zeros((40, 80), bool)
    mask[:, 20:60] = True
    rows = [paper_row("a.svs", paper_header(8000, 4000), mask)]
    drawn = sampler(tmp_path, rows, mpp=(0.25,), min_foreground=1.0).draw_batch(0, range(2000))
    counts = np.histogram([r.x_px for r in drawn], bins=8, range=(2000, 6000 - 128 + 1))[0]
    assert counts.sum() == 2000 and ((counts - 250) ** 2 / 250).sum() < 29.9


def test_where_too_little_tissue_is_anywhere_the_best_candidate_is_taken(tmp_path: Path) -> None:
    mask = np.tile(np.eye(2, dtype=bool), (200, 200))  # half of every box, never more
    rows = [paper_row("a.svs", paper_header(4000, 4000), mask)]
    made = sampler(tmp_path, rows, mpp=(0.5,), min_foreground=0.9)
    first = made.draw_batch(0, range(5))
    assert first == made.draw_batch(0, range(5))


def test_a_visit_stays_on_one_slide_and_its_substitute_leaves_it(tmp_path: Path) -> None:
    made = sampler(tmp_path, slides(50), patches_per_visit=5)
    drawn = [r.slide for r in made.draw_batch(2, range(100))]
    assert all(len(set(drawn[i : i + 5])) == 1 for i in range(0, 100, 5))
    assert len(set(drawn)) > 12
    assert len({r.slide for r in made.draw_batch(2, range(5), attempt=1)}) > 1


def test_substitutes_of_many_attempts_differ(tmp_path: Path) -> None:
    made = sampler(tmp_path, slides(3))
    drawn = [made.draw(0, 0, attempt) for attempt in range(20)]
    assert len({(r.slide, r.x_px, r.y_px) for r in drawn}) == 20
    assert [r.attempt for r in drawn] == list(range(20))


def test_an_mpp_is_drawn_only_where_a_level_shows_it(tmp_path: Path) -> None:
    rows = [
        paper_row("coarse.svs", paper_header(4000, 4000, mpp=0.5)),
        paper_row("fine.svs", paper_header(4000, 4000)),
    ]
    drawn = sampler(tmp_path, rows).draw_batch(0, range(400))
    assert {r.mpp for r in drawn if r.slide == 0} == {0.5}
    assert {r.mpp for r in drawn if r.slide == 1} == {0.25, 0.5}


def test_excluded_slides_have_their_reasons(tmp_path: Path) -> None:
    rows = [
        paper_row("bare.svs", paper_header(4000, 4000), np.zeros((4, 4), bool)),
        paper_row("broken.svs", paper_header(4000, 4000), status="corrupt-header", detail="no directory"),
        paper_row("coarse.dcm", paper_header(4000, 4000, mpp=28.97)),
        paper_row("good.svs", paper_header(4000, 4000)),
        paper_row("small.svs", paper_header(100, 4000)),
        paper_row("speck.svs", paper_header(64000, 64000), np.eye(200, dtype=bool) & (np.arange(200) == 5)),
    ]
    made = sampler(tmp_path, rows, patch_px=2000)
    assert made.excluded == {
        "bare.svs": "no-tissue: its mask is empty",
        "broken.svs": "corrupt-header: no directory",
        "coarse.dcm": "too-coarse: finest level 28.97 mpp, wanted ≤ 0.5",
        "small.svs": "too-small: 100 × 4000 px, a patch of 2000 px at 0.25 mpp needs 2000 px",
        "speck.svs": "too-little-tissue: 0.0064 mm², a patch at 0.25 mpp needs 0.1 mm²",
    }
    assert {r.slide for r in made.draw_batch(0, range(50))} == {3}


def test_nothing_to_draw_from_names_every_slide(tmp_path: Path) -> None:
    rows = [paper_row(f"{i}.svs", paper_header(4000, 4000, mpp=20.0 + i)) for i in range(2)]
    with pytest.raises(UserError) as raised:
        sampler(tmp_path, rows)
    assert (
        "0.svs: too-coarse: finest level 20 mpp" in raised.value.message and "1.svs" in raised.value.message
    )
    with pytest.raises(UserError, match="0 slides"):
        sampler(tmp_path, [])


def test_a_split_tears_no_patient_and_neither_side_is_empty(tmp_path: Path) -> None:
    rows = [paper_row(f"{i:02}.svs", paper_header(4000, 4000), patient=f"p{i // 2}") for i in range(6)]
    train, held_out = (sampler(tmp_path, rows, split) for split in ("train", "heldout"))
    assert sorted([*train.slides, *held_out.slides]) == list(range(6))
    patients = [{rows[int(i)].patient for i in side.slides} for side in (train, held_out)]
    assert patients[0] and patients[1] and not patients[0] & patients[1]


def test_a_slide_that_serves_nothing_is_not_the_one_held_out(tmp_path: Path) -> None:
    for number in range(8):
        rows = [paper_row(f"good-{number}-{i}.svs", paper_header(4000, 4000)) for i in range(2)]
        rows += [paper_row(f"bad-{i}.svs", paper_header(4000, 4000, mpp=30.0)) for i in range(3)]
        sides = [sampler(tmp_path, rows, split).slides for split in ("train", "heldout")]
        assert [len(side) for side in sides] == [1, 1]


def test_one_patient_leaves_nothing_to_hold_out(tmp_path: Path) -> None:
    rows = [paper_row(f"{i}.svs", paper_header(4000, 4000), patient="only") for i in range(3)]
    assert len(sampler(tmp_path, rows, "train").slides) == 3
    with pytest.raises(UserError, match="one patient"):
        sampler(tmp_path, rows, "heldout")
    with pytest.raises(UserError, match=r"fraction is 0"):
        sampler(tmp_path, slides(4), "heldout", heldout=HeldOutConfig(fraction=0.0))


def test_the_level_read_is_never_finer_than_needed_nor_too_coarse() -> None:
    header = paper_header(40000, 40000, mpp=0.2525, downsamples=(1, 4, 16))
    wanted = {0.25: 0, 0.5: 0, 1.0: 1, 2.0: 1, 4.0: 2, 100.0: 2, 0.2: None}
    assert {mpp: best_level(header, mpp, 0.1) for mpp in wanted} == wanted
    assert best_level(header, 0.25, 0.0) is None
    assert best_level(paper_header(400, 400, mpp=0.25), 1.0, 0.0) == 1


def test_anisotropic_mpp_gives_a_square_in_micrometres(tmp_path: Path) -> None:
    header = paper_header(9000, 9000, mpp=(0.25, 0.5))
    assert extent_px(header, 128, 0.5) == (256.0, 128.0)
    assert best_level(header, 0.25, 0.1) is None and best_level(header, 0.5, 0.1) == 0
    made = sampler(tmp_path, [paper_row("a.svs", header)])
    request = made.draw(0, 0)
    box = box_of(request, header, 128, 0.1)
    assert request.mpp == 0.5 and (box.width_px, box.height_px) == (256, 128)


def test_shares_of_the_slides_are_nested_and_leave_the_held_out_ones_alone(tmp_path: Path) -> None:
    made = {share: sampler(tmp_path, slides(40), "train", slide_fraction=share) for share in (0.01, 0.3, 1.0)}
    few, some, every = (set(each.slides.tolist()) for each in made.values())
    assert len(few) == 1 and few < some < every and len(some) == np.ceil(0.3 * len(every))
    held_out = [
        sampler(tmp_path, slides(40), "heldout", slide_fraction=share).slides for share in (0.01, 1.0)
    ]
    assert np.array_equal(*held_out)
    assert set(few) == {request.slide for request in made[0.01].draw_batch(0, range(30))}


def test_distinct_patches_are_so_many_and_the_first_of_more(tmp_path: Path) -> None:
    def drawn(num_distinct: int | None) -> set[tuple[int, int, int, float]]:
        made = sampler(tmp_path, slides(10), "train", num_distinct=num_distinct)
        requests = [request for step in range(20) for request in made.draw_batch(step, range(32))]
        assert [request.index for request in requests[:32]] == list(range(32))
        assert {request.step for request in requests} == set(range(20))
        return {(request.slide, request.x_px, request.y_px, request.mpp) for request in requests}

    few, more = drawn(10), drawn(50)
    assert len(few) == 10 and len(more) == 50 and few < more
    assert len(drawn(None)) > 600


_Patch = tuple[str, int, int, float]


def own_patches(tmp_path: Path, num_slides: int, attempt: int = 0, **changes: Any) -> dict[str, set[_Patch]]:
    """What 60 batches show of each slide."""
    made = sampler(tmp_path, slides(num_slides), "train", **changes)
    found: dict[str, set[_Patch]] = {}
    for step in range(60):
        for request in made.draw_batch(step, range(32), attempt):
            key = made.snapshot.rows[request.slide].slide
            found.setdefault(key, set()).add((key, request.x_px, request.y_px, request.mpp))
    return found


def test_each_slide_has_so_many_distinct_patches_and_they_are_the_first_of_more(tmp_path: Path) -> None:
    few, more = (own_patches(tmp_path, 10, num_distinct_per_slide=number) for number in (3, 12))
    assert len(few) == len(more) > 5
    assert {len(patches) for patches in few.values()} == {3}
    assert {len(patches) for patches in more.values()} == {12}
    assert all(few[slide] < more[slide] for slide in few)
    assert own_patches(tmp_path, 10, attempt=2, num_distinct_per_slide=3) == few, (
        "substitutes are of them too"
    )
    assert all(len(patches) > 60 for patches in own_patches(tmp_path, 10).values())


def test_a_slides_own_patches_do_not_depend_on_the_other_slides(tmp_path: Path) -> None:
    few = own_patches(tmp_path, 10, num_distinct_per_slide=4, slide_fraction=0.3)
    every = own_patches(tmp_path, 10, num_distinct_per_slide=4, patches_per_visit=4)
    larger = own_patches(tmp_path, 14, num_distinct_per_slide=4, heldout={"fraction": 0})
    assert few and all(few[slide] == every[slide] == larger[slide] for slide in few)


def test_patches_are_counted_in_all_or_of_each_slide_not_both() -> None:
    with pytest.raises(ValueError, match="give one"):
        PatchesConfig(num_distinct=10, num_distinct_per_slide=2)
