"""The sampler: sample i of step t by arithmetic on hashes, the same on every worker, after every restart."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.config.patches import PatchesConfig
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.clusters import ClusterCells, open_clusters
from eosin.patches.sampling.counter_rng import Float64, uniforms
from eosin.patches.sampling.eligible import Eligible, Split, find_eligible

# Candidate positions of a patch; more are drawn only where all before them show too little tissue.
_CANDIDATES = 32
_MORE_CANDIDATES = (256, 2048)
_Place = tuple[int, int]


class _Origin(NamedTuple):
    """What the draws of a patch's place are a function of, beside the seed."""

    stream: str
    step: int
    number: int


class Sampler:
    """Draws slide, magnification and position of each sample.

    The slide is drawn first, by `config.weighting` and `config.cohort_weights`, among those of `split`
    that offer at least one wanted mpp; then the mpp, by its weights or uniformly in log mpp, among what
    the slide offers; then the position, uniform over those with at least `config.min_foreground` tissue.
    Where 2336 candidates hold no such position, the one with the most tissue is taken. A visit is
    `config.patches_per_visit` consecutive samples of a step and draws one slide.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        config: PatchesConfig,
        *,
        seed: int,
        split: Split = "all",
        patterns: Sequence[str] = ("*",),
    ) -> None:
        """`patterns`: of the slides' keys.

        Raises `UserError`, naming each slide with its reason, where nothing can be drawn from.
        """
        self.snapshot = snapshot
        self.config = config
        self.seed = seed
        self.split = split
        # The slack keeps rounding, which differs between machines, from deciding at exact shares.
        self._enough = config.min_foreground - 1e-9
        self._eligible: Eligible = find_eligible(snapshot, config, split, patterns)
        curation = config.curation if split == "train" else None
        self._clusters = open_clusters(curation, snapshot, self._eligible.rows) if curation else None

    @property
    def excluded(self) -> dict[str, str]:
        """Why a slide of the snapshot gives no patch, by slide: `too-coarse: finest level 28.97 mpp, …`."""
        if self._clusters is None:
            return self._eligible.excluded
        without = np.setdiff1d(self._eligible.rows, self.slides)
        names = self.snapshot.rows.texts("slide", without)
        return {
            **self._eligible.excluded,
            **dict.fromkeys(names, "not-clustered: it has no cell of a cluster"),
        }

    @property
    def slides(self) -> npt.NDArray[np.int64]:
        """Rows of the snapshot that are drawn from."""
        if self._clusters is not None:
            return np.unique(self._clusters.rows).astype(np.int64)
        return self._eligible.rows

    def draw(self, step: int, index: int, attempt: int = 0) -> PatchRequest:
        """Sample `index` of `step`; `attempt` > 0 is its substitute of that order, of a visit of its own."""
        return self.draw_batch(step, [index], attempt)[0]

    def draw_batch(self, step: int, indices: Sequence[int], attempt: int = 0) -> tuple[PatchRequest, ...]:
        """As `draw` for each of `indices`, cheaper together."""
        if self.config.num_distinct is not None and self.split == "train":
            return self._draw_again(step, indices, attempt, self.config.num_distinct)
        return self._draw(step, indices, attempt)

    def _draw_again(
        self, step: int, indices: Sequence[int], attempt: int, num_distinct: int
    ) -> tuple[PatchRequest, ...]:
        """Each sample is one of the first `num_distinct` patches of step 0, drawn uniformly."""
        drawn = uniforms(self.seed, "distinct", step, indices, 1)[:, 0]
        patches = self._draw(0, [int(place) for place in np.floor(drawn * num_distinct)], attempt)
        return tuple(
            replace(patch, step=step, index=index) for index, patch in zip(indices, patches, strict=True)
        )

    def _draw(self, step: int, indices: Sequence[int], attempt: int) -> tuple[PatchRequest, ...]:
        visits = [i // self.config.patches_per_visit for i in indices] if attempt == 0 else indices
        cells: Sequence[int | None] = [None] * len(indices)
        if self._clusters is not None:
            cells, picked = self._pick_cells(self._clusters, step, indices, attempt, visits)
        else:
            picked = self._eligible.pick(uniforms(self.seed, f"visit{attempt}", step, visits, 1)[:, 0])
            if self.config.num_distinct_per_slide is not None and self.split == "train":
                return self._draw_own(step, indices, attempt, picked, self.config.num_distinct_per_slide)
        self.snapshot.rows.prefetch(self._eligible.rows[picked])
        stream = f"spot{attempt}"
        drawn = uniforms(self.seed, stream, step, indices, 1 + 2 * _CANDIDATES)
        return tuple(
            PatchRequest(step, index, *self._place(slide, row, _Origin(stream, step, index), cell), attempt)
            for index, slide, row, cell in zip(indices, picked, drawn, cells, strict=True)
        )

    def _pick_cells(
        self, clusters: ClusterCells, step: int, indices: Sequence[int], attempt: int, visits: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Of each sample a cell and its slide: each visit is of one cluster in one slide."""
        drawn = uniforms(self.seed, f"visit{attempt}", step, visits, 2).tolist()
        found = [clusters.pick(cluster, member) for cluster, member in drawn]
        which = uniforms(self.seed, f"cell{attempt}", step, indices, 1)[:, 0].tolist()
        cells = [each[int(one * len(each))] for each, one in zip(found, which, strict=True)]
        return cells, np.searchsorted(self._eligible.rows, clusters.rows[cells]).tolist()

    def _draw_own(
        self, step: int, indices: Sequence[int], attempt: int, picked: Sequence[int], num_distinct: int
    ) -> tuple[PatchRequest, ...]:
        """Each sample is one of the slide's own first `num_distinct` patches, which its key alone tells."""
        which = np.floor(uniforms(self.seed, f"own{attempt}", step, indices, 1)[:, 0] * num_distinct)
        requests = []
        for index, slide, number in zip(indices, picked, which.astype(int).tolist(), strict=True):
            requests.append(PatchRequest(step, index, *self._own_place(slide, number), attempt))
        return tuple(requests)

    def patches_of(self, row: int, num: int) -> list[PatchRequest]:
        """The first `num` of the slide's own patches, which its key and the seed alone tell; `row` is one of
        `slides`."""
        place = int(np.searchsorted(self._eligible.rows, row))
        return [PatchRequest(0, number, *self._own_place(place, number)) for number in range(num)]

    def _own_place(self, slide: int, number: int) -> tuple[int, int, int, float]:
        origin = _Origin(f"own:{self.snapshot.rows[int(self._eligible.rows[slide])].slide}", 0, number)
        drawn = uniforms(self.seed, origin.stream, 0, [number], 1 + 2 * _CANDIDATES)[0]
        return self._place(slide, drawn, origin)

    def _place(
        self, slide: int, drawn: Float64, origin: _Origin, cell: int | None = None
    ) -> tuple[int, int, int, float]:
        """Row of the snapshot, x_px, y_px and mpp of a patch of eligible slide number `slide`, its centre in
        `cell` where one is given."""
        mpp = self._eligible.magnifications.pick(slide, float(drawn[0]))
        number = int(self._eligible.rows[slide])
        row = self.snapshot.rows[number]
        place, share = self._first_of(row, mpp, drawn[1:], cell)
        for round_number, num_candidates in enumerate(_MORE_CANDIDATES, 1):
            if share >= self._enough:
                break
            stream = f"{origin.stream}.{round_number}"
            more = uniforms(self.seed, stream, origin.step, [origin.number], 2 * num_candidates)[0]
            other, other_share = self._best_of(row, mpp, more, cell)
            if other_share > share:
                place, share = other, other_share
        return number, *place, mpp

    def _first_of(
        self, row: SlideRow, mpp: float, candidates: Float64, cell: int | None
    ) -> tuple[_Place, float]:
        """The first candidate with enough tissue, else the one with most; looked at one by one."""
        width_px, height_px = extent_px(row.header, self.config.patch_px, mpp)
        across, down = self._axes(row, mpp, cell)
        assert row.tissue is not None
        best, most = (0, 0), -1.0
        num = len(candidates) // 2
        for number in range(num):  # most often the first serves
            place = across.corner(candidates.item(number)), down.corner(candidates.item(num + number))
            share = row.tissue.fraction_of_one(*place, width_px, height_px)
            if share > most:
                best, most = place, share
            if share >= self._enough:
                break
        return best, most

    def _best_of(
        self, row: SlideRow, mpp: float, candidates: Float64, cell: int | None
    ) -> tuple[_Place, float]:
        """As `_first_of`, for so many candidates that the summed-area table pays."""
        width_px, height_px = extent_px(row.header, self.config.patch_px, mpp)
        assert row.tissue is not None
        axes = zip(self._axes(row, mpp, cell), candidates.reshape(2, -1).tolist(), strict=True)
        x, y = (np.array([axis.corner(each) for each in drawn]) for axis, drawn in axes)
        shares = row.tissue.fraction(x, y, width_px, height_px)
        enough = np.flatnonzero(shares >= self._enough)
        chosen = int(enough[0]) if len(enough) else int(np.argmax(shares))
        return (int(x[chosen]), int(y[chosen])), float(shares[chosen])

    def _axes(self, row: SlideRow, mpp: float, cell: int | None) -> "tuple[_AxisOfDraws, _AxisOfDraws]":
        """Where patches may begin, across and down the slide, their centres in `cell` where one is given."""
        finest = row.header.levels[0]
        width_px, height_px = extent_px(row.header, self.config.patch_px, mpp)
        room_x, room_y = finest.width_px - math.ceil(width_px), finest.height_px - math.ceil(height_px)
        if self._clusters is None or cell is None:
            return _AxisOfDraws(0, room_x + 1, 0, room_x), _AxisOfDraws(0, room_y + 1, 0, room_y)
        spec = self._clusters.manifest.spec
        assert spec.mpp is not None, "eosin curate refuses features of several magnifications"
        cell_width_px, cell_height_px = extent_px(row.header, spec.patch_px, spec.mpp)
        return (
            _AxisOfDraws(int(self._clusters.x_px[cell]), cell_width_px, width_px / 2, room_x),
            _AxisOfDraws(int(self._clusters.y_px[cell]), cell_height_px, height_px / 2, room_y),
        )


class _AxisOfDraws(NamedTuple):
    """Level-0 pixels among which patches begin: uniform over `extent_px` from `start_px` on, less `back_px`,
    and at most at `most_px`, which keeps them inside the slide."""

    start_px: int
    extent_px: float
    back_px: float
    most_px: int

    def corner(self, uniform: float) -> int:
        """The pixel at `uniform` in [0, 1)."""
        return min(max(math.floor(self.start_px + uniform * self.extent_px - self.back_px), 0), self.most_px)
