"""One tile of pixels as the bytes that a TIFF of each compression holds."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from eosin.demo.synthetic.config import SlideCompression

Rgb = npt.NDArray[np.uint8]
_DQT, _DHT, _SOF, _SOS, _EOI = 0xDB, 0xC4, 0xC0, 0xDA, b"\xff\xd9"
_SOI = b"\xff\xd8"
_JPEG, _J2K_YCBCR, _J2K_RGB = 7, 33003, 33005


class TileCodec:
    """Encodes (h, w, 3) uint8 RGB tiles; `tags()` are what the page must say about them."""

    def __init__(self, compression: SlideCompression, quality: int) -> None:
        self.compression = compression
        self.quality = quality

    @property
    def aperio_name(self) -> str:
        """How Aperio names the compression in a description."""
        if self.compression.startswith("jpeg2000"):
            return f"J2K/KDU Q={self.quality}"
        if self.compression in ("jpeg", "jpeg-rgb"):
            return f"JPEG/{'RGB' if self.compression == 'jpeg-rgb' else 'YCC'} Q={self.quality}"
        return self.compression.upper()

    @property
    def by_tifffile(self) -> Literal["lzw", "deflate", "none"] | None:
        """The lossless schemes, which tifffile encodes itself."""
        lossless = self.compression in ("lzw", "deflate", "none")
        return self.compression if lossless else None  # type: ignore[return-value]  # mypy does not narrow by `in`

    @property
    def predictor(self) -> bool:
        """Whether tiles are stored as horizontal differences."""
        return self.compression in ("lzw", "deflate")

    def encode(self, tile: Rgb) -> bytes:
        """The bytes of one tile; JPEG leaves out the tables that `tags()` shares between tiles."""
        if self.compression == "jpeg2000-rgb":
            return bytes(imagecodecs.jpeg2k_encode(tile, level=self.quality // 2, codecformat="j2k"))
        if self.compression == "jpeg2000-ycbcr":
            ycbcr = cv2.cvtColor(tile, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
            return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(ycbcr), level=self.quality // 2,
                                                   codecformat="j2k", mct=False))  # fmt: skip
        return _without_tables(self._jpeg(tile))

    def tags(self, side_px: int) -> dict[str, Any]:
        """Arguments of `TiffWriter.write` for pages of encoded tiles about `side_px` high."""
        if self.compression == "jpeg2000-rgb":
            return {"compression": _J2K_RGB, "photometric": "rgb"}
        if self.compression == "jpeg2000-ycbcr":
            return {"compression": _J2K_YCBCR, "photometric": "rgb"}
        tables = _tables(self._jpeg(np.zeros((side_px, side_px, 3), np.uint8)))
        if self.compression == "jpeg-rgb":
            return {"compression": _JPEG, "photometric": "rgb", "jpegtables": tables,
                    "compressionargs": {"outcolorspace": "rgb"}}  # fmt: skip
        return {"compression": _JPEG, "photometric": "ycbcr", "subsampling": (2, 2), "jpegtables": tables}

    def _jpeg(self, tile: Rgb) -> bytes:
        if self.compression == "jpeg-rgb":
            whole = imagecodecs.jpeg8_encode(
                tile, level=self.quality, colorspace="RGB", outcolorspace="RGB", subsampling="444"
            )
            return _anonymous(bytes(whole))
        return bytes(
            simplejpeg.encode_jpeg(tile, quality=self.quality, colorspace="RGB", colorsubsampling="420")
        )


def _segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Marker segments after SOI as (code, bytes with marker); the last one is SOS with all that follows."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while True:
        code = jpeg[at + 1]
        if code == _SOS:
            return [*found, (code, jpeg[at:])]
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((code, jpeg[at : at + length]))
        at += length


def _tables(jpeg: bytes) -> bytes:
    """The quantisation and Huffman tables of `jpeg` alone, as TIFF tag 347 wants them."""
    return _SOI + b"".join(part for code, part in _segments(jpeg) if code in (_DQT, _DHT)) + _EOI


def _without_tables(jpeg: bytes) -> bytes:
    """`jpeg` without tables and application markers: an abbreviated stream."""
    return _SOI + b"".join(part for code, part in _segments(jpeg) if code in (_SOF, _SOS))


def _anonymous(jpeg: bytes) -> bytes:
    """Components numbered 0, 1, 2 in place of the letters R, G, B, which would tell a decoder."""
    parts = []
    for code, part in _segments(jpeg):
        data = bytearray(part)
        if code == _SOF:
            data[10:19:3] = bytes((0, 1, 2))
        elif code == _SOS:
            data[5:11:2] = bytes((0, 1, 2))
        parts.append(bytes(data))
    return _SOI + b"".join(parts)
