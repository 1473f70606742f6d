from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def decode_parts(
    tables: bytes,
    is_rgb: bool,
    tile_width_px: int,
    tile_height_px: int,
    denominator: int,
    tiles: tuple[object, ...],
    parts: tuple[Sequence[int], ...],
    region: npt.NDArray[np.uint8],
    /,
) -> bytes: ...
def shrink(
    region: npt.NDArray[np.uint8],
    width_px: int,
    patch: npt.NDArray[np.uint8],
    patch_width_px: int,
    columns: bytes,
    rows: bytes,
    /,
) -> None: ...
