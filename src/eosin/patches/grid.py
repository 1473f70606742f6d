"""A regular grid of patches over the tissue of slides: which ones, and how they are cut into shards."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from eosin.config.patches import GridConfig, PatchesConfig
from eosin.errors import UserError
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot
from eosin.patches.eligible import find_eligible
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest

_Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GridPlan:
    """Every patch of a grid, in order: by slide as in the snapshot, then by row and column."""

    snapshot: Snapshot
    grid: GridConfig
    patches: PatchesConfig
    """How a patch is read: side, mpp and the rest."""
    slides: _Positions
    """Rows of the snapshot that give at least one patch, [n]."""
    ends: _Positions
    """How many patches the slides up to and with each give, [n]."""

    @property
    def num_patches(self) -> int:
        return int(self.ends[-1])

    @property
    def num_shards(self) -> int:
        return -(-self.num_patches // self.grid.patches_per_shard)

    def shard(self, number: int) -> list[PatchRequest]:
        """The patches of shard `number`, of `grid.patches_per_shard` but for the last; `index` counts all."""
        first = number * self.grid.patches_per_shard
        last = min(first + self.grid.patches_per_shard, self.num_patches)
        found: list[PatchRequest] = []
        place = int(np.searchsorted(self.ends, first, side="right"))
        while first < last:
            slide, end = int(self.slides[place]), int(self.ends[place])
            x, y = grid_positions(self.snapshot.rows[slide], self.grid, self.patches.patch_px)
            stop = min(last, end)
            found += [
                PatchRequest(0, index, slide, int(x[index - end]), int(y[index - end]), self.grid.mpp)
                for index in range(first, stop)
            ]
            first, place = stop, place + 1
        return found


def plan_grid(snapshot: Snapshot, config: PatchesConfig, grid: GridConfig) -> GridPlan:
    """The patches of `grid`: arithmetic on headers and tissue masks, one slide in memory at a time.

    Raises `UserError` where no slide serves, a pattern of `grid.slides` matches none, or no position has
    enough tissue.
    """
    reading = reading_config(config, grid)
    slides = _chosen(snapshot, config, grid, find_eligible(snapshot, reading, "all").rows)
    counts = np.array(
        [len(grid_positions(snapshot.rows[int(number)], grid, reading.patch_px)[0]) for number in slides],
        dtype=np.int64,
    )
    if not counts.sum():
        raise UserError(
            f"the grid has no patch: no position on {len(slides)} slides has "
            f"{grid.min_foreground:.0%} of tissue",
            hint="lower its min_foreground, mpp or patch_px",
        )
    return GridPlan(snapshot, grid, reading, slides[counts > 0], np.cumsum(counts[counts > 0]))


def reading_config(config: PatchesConfig, grid: GridConfig) -> PatchesConfig:
    """`config` with what the grid decides in place of training's."""
    return config.model_copy(
        update={
            "patch_px": grid.patch_px or config.patch_px,
            "mpp": (grid.mpp,),
            "mpp_weights": None,
            "mpp_range": None,
            "min_foreground": grid.min_foreground,
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


def _chosen(snapshot: Snapshot, config: PatchesConfig, grid: GridConfig, slides: _Positions) -> _Positions:
    if grid.split != "all":
        slides = np.intersect1d(slides, find_eligible(snapshot, config, grid.split).rows)
    names = [snapshot.rows[int(number)].slide for number in slides]
    matches = {pattern: [fnmatchcase(name, pattern) for name in names] for pattern in grid.slides}
    for pattern, found in matches.items():
        if not any(found):
            raise UserError(
                f"{pattern!r} matches none of the {len(names)} slides that serve at {grid.mpp:g} mpp",
                hint="see `eosin index inspect`; `*` stands for any part of a slide's key",
            )
    return slides[np.any(list(matches.values()), axis=0)]
