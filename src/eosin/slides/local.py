"""Staged slides through OpenSlide, for formats that only it can place."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eosin.slides.decode import over_white
from eosin.slides.errors import SlideError
from eosin.slides.model import Level, SlideHeader, SlideObject, plausible_mpp

_TILE_PX = 256


def open_local(path: Path) -> "LocalSlide":
    """Open a staged copy. Raises `SlideError` (`not-a-slide`) where OpenSlide refuses it."""
    import openslide

    try:
        return LocalSlide(openslide.OpenSlide(str(path)), path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        reason = "unsupported-format" if _is_czi(path) else "not-a-slide"
        raise SlideError(reason, "OpenSlide does not know its format") from error
    except openslide.OpenSlideError as error:
        said = _without_folder(error, path)
        if re.search(r"unsupported|not supported|cannot handle", said, re.IGNORECASE):
            raise SlideError(
                "unsupported-format", f"it is valid, but OpenSlide cannot read it: {said}"
            ) from error
        raise SlideError("corrupt-header", f"OpenSlide refuses it: {said}") from error


class LocalSlide:
    """An open local copy. Not thread-safe in `close`; reads may come from several threads."""

    def __init__(self, handle: object, path: Path) -> None:
        from openslide import OpenSlide

        assert isinstance(handle, OpenSlide)
        self._handle = handle
        self.path = path

    def header(self, objects: tuple[SlideObject, ...]) -> SlideHeader:
        """Levels and resolution; tiles are OpenSlide's own business."""
        properties = self._handle.properties
        levels = tuple(
            Level(
                width_px=width, height_px=height, downsample=float(downsample),
                tile_width_px=int(properties.get(f"openslide.level[{i}].tile-width", _TILE_PX)),
                tile_height_px=int(properties.get(f"openslide.level[{i}].tile-height", _TILE_PX)),
                compression="other", color_space="rgb", first_tile=0,
            )
            for i, ((width, height), downsample) in enumerate(
                zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
            )
        )  # fmt: skip
        vendor = properties.get("openslide.vendor", "openslide")
        mpp = [_mpp(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
        return SlideHeader(
            objects, vendor, vendor, levels, mpp[0], mpp[1], access="local",
            origin_x_px=int(properties.get("openslide.bounds-x", 0)),
            origin_y_px=int(properties.get("openslide.bounds-y", 0)),
        )  # fmt: skip

    def read_region(self, x_px: int, y_px: int, level: int, w: int, h: int) -> npt.NDArray[np.uint8]:
        """[h, w, 3] of `level`; the corner is in the level-0 frame. Transparent pixels come white."""
        import openslide

        try:
            image = self._handle.read_region((x_px, y_px), level, (w, h))
        except openslide.OpenSlideError as error:
            # What has failed once fails for ever: another region must not pay for this one.
            self._handle = openslide.OpenSlide(str(self.path))
            why = _without_folder(error, self.path)
            raise SlideError("corrupt-tile", f"OpenSlide cannot read {self.path.name}: {why}") from error
        return over_white(np.asarray(image))

    def close(self) -> None:
        """Give the file back; reading afterwards is an error."""
        self._handle.close()


def _is_czi(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(10) == b"ZISRAWFILE"


def _without_folder(error: Exception, path: Path) -> str:
    """What OpenSlide says, the same wherever the copy lies: rows of an index must not tell."""
    return str(error).replace(f"{path.parent}/", "").replace(str(path.parent), "its folder")


def _mpp(text: str | None) -> float | None:
    try:
        return plausible_mpp(float(text.replace(",", "."))) if text else None
    except ValueError:
        return None
