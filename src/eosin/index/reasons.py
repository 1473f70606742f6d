"""Reasons why a slide is not used, in plain words, and what its owner can do about each."""

from __future__ import annotations

_AGAIN = "upload it again, or export it anew from the scanner"
_TILED = "write it again as a tiled pyramid: vips tiffsave --tile --pyramid"
REASONS: dict[str, tuple[str, str]] = {
    "no-mpp": ("its header has no resolution (mpp)", "give it in slides.overrides: a CSV with slide,mpp"),
    "too-coarse": ("it is scanned coarser than any wanted mpp", "raise index.max_mpp if it is meant"),
    "no-tissue": ("no tissue was found on it", "look at its thumbnail; try index.tissue.method=saturation"),
    "bad-contours": (
        "its contours do not outline tissue of it", "mend its GeoJSON file, or take it out of slides.contours"
    ),
    "excluded": ("the overrides exclude it", "set exclude to no in slides.overrides"),
    "empty-file": ("the file has no bytes", "upload it again"),
    "not-a-slide": ("the file is no slide that eosin reads", "remove it, or narrow slides.include"),
    "truncated": ("the file ends before its data does", "upload it again"),
    "corrupt-header": ("its header is damaged", _AGAIN),
    "corrupt-tile": ("a tile could not be decoded", _AGAIN),
    "tile-out-of-range": ("tiles point past the end of the file", "upload it again: it may be cut short"),
    "not-tiled": ("it is not stored in tiles", _TILED),
    "unsupported-compression": ("its compression is not supported", _TILED),
    "unsupported-pixels": ("its pixels are not 8-bit RGB", "export it as 8-bit RGB brightfield"),
    "unsupported-layout": ("its layout is not supported", _TILED),
    "unsupported-format": (
        "no library here reads its format", "export it as OME-TIFF or DICOM from the vendor's software"
    ),
    "not-brightfield": ("it shows fluorescence", "leave it out: models are trained on stained tissue"),
    "disagrees": ("another reader shows another picture of it", "do not use it, and report its format"),
    "denied": ("it may not be read", "give the credentials in use the right to read it, and index again"),
    "missing": ("it was gone when it was read", "index again"),
    "changed": ("it changed while it was read", "index again"),
    "unreadable": ("a library failed on it", "index again; if it stays, report its format"),
}  # fmt: skip
"""Of each status: what it means, and what cures it."""


def cure_of(status: str) -> str:
    """What helps against a status; empty for `ok` and where nothing is known."""
    return REASONS.get(status, ("", ""))[1]
