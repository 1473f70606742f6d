import numpy as np
import numpy.typing as npt

def decode_part(
    tables: bytes,
    tile: bytes,
    is_rgb: bool,
    tile_width_px: int,
    tile_height_px: int,
    denominator: int,
    x_px: int,
    y_px: int,
    out: npt.NDArray[np.uint8],
    /,
) -> bool: ...
