"""Which patch is sample i of step t: arithmetic on hashes, the same on every worker, after every restart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from eosin.config.patches import PatchesConfig
from eosin.index.snapshot import Snapshot
from eosin.patches.draws import Float64, uniforms
from eosin.patches.eligible import Eligible, Split, find_eligible
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest

# Candidate positions of a patch, by round; a next round is drawn only where all before it show too little.
_CANDIDATES = (32, 256, 2048)


class Sampler:
    """Draws slide, magnification and position of each sample.

    The slide is drawn first, by `config.weighting`, among those of `split` that offer at least one
    wanted mpp; then the mpp, by its weights, among those the slide offers; then the position, uniform
    over those with at least `config.min_foreground` tissue. Where 2336 candidates hold no such
    position, the one with the most tissue is taken. A visit is `config.patches_per_visit` consecutive
    samples of a step and draws one slide.
    """

    def __init__(self, snapshot: Snapshot, config: PatchesConfig, *, seed: int, split: Split = "all") -> None:
        """Raises `UserError`, naming each slide with its reason, where nothing can be drawn from."""
        self.snapshot = snapshot
        self.config = config
        self.seed = seed
        self.split = split
        self._eligible: Eligible = find_eligible(snapshot, config, split)

    @property
    def excluded(self) -> dict[str, str]:
        """Why a slide of the snapshot gives no patch, by slide: `too-coarse: finest level 28.97 mpp, …`."""
        return self._eligible.excluded

    @property
    def slides(self) -> npt.NDArray[np.int64]:
        """Rows of the snapshot that are drawn from."""
        return self._eligible.rows

    def draw(self, step: int, index: int, attempt: int = 0) -> PatchRequest:
        """Sample `index` of `step`; `attempt` > 0 is its substitute of that order, of a visit of its own."""
        return self.draw_batch(step, [index], attempt)[0]

    def draw_batch(self, step: int, indices: Sequence[int], attempt: int = 0) -> tuple[PatchRequest, ...]:
        """As `draw` for each of `indices`, cheaper together."""
        visits = [i // self.config.patches_per_visit for i in indices] if attempt == 0 else indices
        slides = uniforms(self.seed, f"visit{attempt}", step, visits, 1)[:, 0]
        drawn = uniforms(self.seed, f"spot{attempt}", step, indices, 1 + 2 * _CANDIDATES[0])
        return tuple(
            self._place(step, index, attempt, self._eligible.pick(slide), row)
            for index, slide, row in zip(indices, slides, drawn, strict=True)
        )

    def _place(self, step: int, index: int, attempt: int, slide: int, drawn: Float64) -> PatchRequest:
        mpp = self.config.mpp[self._eligible.pick_mpp(slide, drawn[0])]
        candidates = drawn[1:]
        best, most = (0, 0), -1.0
        for number in range(len(_CANDIDATES)):
            if number:
                stream = f"spot{attempt}.{number}"
                candidates = uniforms(self.seed, stream, step, [index], 2 * _CANDIDATES[number])[0]
            position, foreground = self._best_of(slide, mpp, candidates)
            if foreground > most:
                best, most = position, foreground
            if most >= self.config.min_foreground:
                break
        row = int(self._eligible.rows[slide])
        return PatchRequest(step, index, row, best[0], best[1], mpp, attempt)

    def _best_of(self, slide: int, mpp: float, candidates: Float64) -> tuple[tuple[int, int], float]:
        """The first candidate with enough tissue, else the one with most; and its share of tissue."""
        row = self.snapshot.rows[int(self._eligible.rows[slide])]
        finest, tissue = row.header.levels[0], row.tissue
        assert tissue is not None
        width_px, height_px = extent_px(row.header, self.config.patch_px, mpp)
        half = len(candidates) // 2
        x = np.floor(candidates[:half] * (finest.width_px - np.ceil(width_px) + 1)).astype(np.int64)
        y = np.floor(candidates[half:] * (finest.height_px - np.ceil(height_px) + 1)).astype(np.int64)
        shares = tissue.fraction(x, y, width_px, height_px)
        enough = np.flatnonzero(shares >= self.config.min_foreground)
        chosen = int(enough[0]) if len(enough) else int(np.argmax(shares))
        return (int(x[chosen]), int(y[chosen])), float(shares[chosen])
