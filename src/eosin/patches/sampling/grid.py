"""A regular grid of patches over the tissue of slides."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.config.patches import GridConfig, PatchesConfig
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.eligible import among, find_eligible, matching

_Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GridPlan:
    """The slides of a grid. Positions are worked out slide by slide, by whoever decodes the slide."""

    snapshot: Snapshot
    grid: GridConfig
    patches: PatchesConfig
    """How a patch is read: side, mpp and the rest."""
    slides: _Positions
    """Rows of the snapshot that could give a patch, [n]."""
    excluded: dict[str, str]
    """Why others that match the grid's patterns give none, by slide."""

    def slide(self, place: int) -> list[PatchRequest]:
        """The patches of slide number `place`, by row and column; `index` counts them."""
        slide = int(self.slides[place])
        x, y = grid_positions(self.snapshot.rows[slide], self.grid, self.patches.patch_px)
        return [
            PatchRequest(0, index, slide, at_x, at_y, self.grid.mpp)
            for index, (at_x, at_y) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
        ]


def plan_grid(snapshot: Snapshot, config: PatchesConfig, grid: GridConfig) -> GridPlan:
    """The slides of `grid`, from their headers alone: microseconds a slide, no mask is looked at.

    Raises `UserError` where no slide serves, or a pattern of `grid.slides` matches none.
    """
    reading = reading_config(config, grid)
    eligible = find_eligible(snapshot, reading, "all")
    slides = eligible.rows
    if grid.split != "all":
        slides = np.intersect1d(slides, find_eligible(snapshot, config, grid.split).rows)
    return GridPlan(
        snapshot,
        grid,
        reading,
        matching(snapshot, slides, grid.slides, lambda: eligible.excluded),
        among(eligible.excluded, grid.slides),
    )


def reading_config(config: PatchesConfig, grid: GridConfig) -> PatchesConfig:
    """`config` with what the grid decides in place of training's."""
    return config.model_copy(
        update={
            "patch_px": grid.patch_px or config.patch_px,
            "mpp": (grid.mpp,),
            "mpp_weights": None,
            "mpp_range": None,
            "min_foreground": grid.min_foreground,
            "hsv_filter": None,
        }
    )


def grid_positions(row: SlideRow, grid: GridConfig, patch_px: int) -> tuple[_Positions, _Positions]:
    """Top-left corners (x, y), each [n] in level-0 pixels, of the patches with enough tissue, row by row.

    The grid begins at the slide's corner; its stride is rounded to whole level-0 pixels at each position
    apart, so that nothing adds up. A patch that would leave the slide at the right or below is left out.
    """
    finest = row.header.levels[0]
    width_px, height_px = extent_px(row.header, patch_px, grid.mpp)
    share = (patch_px - grid.overlap_px) / patch_px
    columns = _along(finest.width_px, width_px, share)
    lines = _along(finest.height_px, height_px, share)
    x, y = (axis.ravel() for axis in np.meshgrid(columns, lines))
    if not len(x):
        return x, y
    assert row.tissue is not None
    # The slack keeps rounding, which differs between machines, from deciding at exact shares.
    enough = row.tissue.fraction(x, y, width_px, height_px) >= grid.min_foreground - 1e-9
    return x[enough], y[enough]


def _along(slide_px: int, patch_px: float, share: float) -> _Positions:
    room = slide_px - int(np.ceil(patch_px))
    if room < 0:
        return np.empty(0, dtype=np.int64)
    stride = patch_px * share
    places = np.floor(np.arange(int(room / stride) + 2) * stride + 0.5).astype(np.int64)
    return np.unique(places[places <= room])
