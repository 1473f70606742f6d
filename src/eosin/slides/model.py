"""The slide model: levels, tiles, resolution, and where each byte lies, once a header has been read.

Coordinates named `x_px`, `y_px` without further word are in the level-0 frame: pixels of the finest
level, origin at its top-left corner, y down.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt


class BinaryFile(Protocol):
    """A seekable file of bytes: an open local file, or an object read by range."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes from here; all that is left for -1."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to `offset`, as `io` counts it; returns the new place."""
        ...

    def tell(self) -> int:
        """The place, in bytes from the start."""
        ...


Compression = Literal[
    "jpeg", "jpeg2000", "jpegls", "jpegxl", "webp", "rle", "packbits", "lzw", "deflate", "zstd", "none",
    "other",
]  # fmt: skip
ColorSpace = Literal[
    "rgb",
    "rgb-transformed",
    "ycbcr-untransformed",
    "ycbcr",
    "gray",
    "rgb+straight",
    "gray+straight",
    "rgb+premultiplied",
    "gray+premultiplied",
    "rgb+other",
    "gray+other",
]

# Light resolves some 0.2 µm; the coarsest overview scan is finer than print (72 dpi: 353 µm).
_FINEST_PLAUSIBLE_MPP, _COARSEST_PLAUSIBLE_MPP = 0.02, 50.0

# Fixed width, so that the bytes of tile t of a published table are [16 t, 16 t + 16).
TILE_DTYPE = np.dtype([("offset", "<u8"), ("size_bytes", "<u4"), ("object", "<u4")])
TileTable = npt.NDArray[np.void]


@dataclass(frozen=True)
class SlideObject:
    """One stored object of a slide; `key` is relative to the slides URI."""

    key: str
    etag: str
    size_bytes: int


@dataclass(frozen=True)
class Level:
    """One resolution. Its tiles are rows `first_tile` … of the slide's tile table, row-major."""

    width_px: int
    height_px: int
    downsample: float
    """Level-0 pixels per pixel of this level (1 for the finest)."""
    tile_width_px: int
    tile_height_px: int
    compression: Compression
    color_space: ColorSpace
    """What the compressed samples are: `rgb` JPEG needs an APP14 marker, `ycbcr` is converted; the
    codestream of JPEG 2000 has to have a component transform (`rgb-transformed`), or none
    (`ycbcr-untransformed`).

    A sample more than colours is alpha: `+straight`, or `+premultiplied` where colours are multiplied by it;
    `+other`: it is no alpha.
    """
    first_tile: int
    jpeg_tables: bytes | None = None
    """Shared quantisation and Huffman tables, to be put before each tile's scan."""
    predictor: int = 1
    """TIFF horizontal differencing (2) or none (1)."""

    @property
    def num_tiles_x(self) -> int:
        """Columns of the tile grid."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def num_tiles_y(self) -> int:
        """Rows of the tile grid."""
        return -(-self.height_px // self.tile_height_px)

    @property
    def num_tiles(self) -> int:
        """Tiles of the grid, edge tiles included."""
        return self.num_tiles_x * self.num_tiles_y


@dataclass(frozen=True)
class SlideHeader:
    """What the bytes of a slide say, without pixels. `mpp` is None where the header has none."""

    objects: tuple[SlideObject, ...]
    vendor: str
    format: str
    """svs, tiff, ome-tiff, philips-tiff, dicom, or the OpenSlide vendor."""
    levels: tuple[Level, ...]
    """Finest first."""
    mpp_x: float | None
    mpp_y: float | None
    access: Literal["tiles", "local"] = "tiles"
    """tiles: any tile by byte range; local: OpenSlide on a staged copy."""
    origin_x_px: int = 0
    """Corner of what was scanned, where OpenSlide says it: QuPath shows that alone and counts from there."""
    origin_y_px: int = 0


def plausible_mpp(value: float | None) -> float | None:
    """`value` (µm a pixel) where it can be the resolution of a scan: from 0.02 to 50; else None.

    72 dpi, a unit taken for another and a zero are none: a resolution that nobody measured must not decide
    which patches are drawn.
    """
    if value is None or not math.isfinite(value):
        return None
    return value if _FINEST_PLAUSIBLE_MPP <= value <= _COARSEST_PLAUSIBLE_MPP else None


def middle_of(num_planes: int) -> str:
    """What the row of a slide of several focal planes says; empty for one plane."""
    return f"the middle one of {num_planes} focal planes is read" if num_planes > 1 else ""


def num_samples(level: Level) -> int:
    """Of a pixel, as it is stored: colours, and what stands behind the + of their space."""
    colour, extra, _ = level.color_space.partition("+")
    return (1 if colour == "gray" else 3) + len(extra)
