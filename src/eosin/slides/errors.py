"""Reasons why a slide, or a part of it, cannot be used: a code that is counted, a sentence that is read."""

from eosin.errors import PermanentError
from eosin.storage import NotFound, ObjectChanged


class SlideError(PermanentError):
    """A defect of one slide: `reason` is its index row's status, one of `REASONS`; `message` what was met."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return SlideError, (self.reason, self.message)


def absent_or_changed(key: str, error: NotFound | ObjectChanged) -> SlideError:
    """What it means for a slide that its object `key` is not the one that was listed (or indexed)."""
    if isinstance(error, NotFound):
        return SlideError("missing", f"{key} is no longer there")
    return SlideError("changed", f"{key} was replaced since it was listed")


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
