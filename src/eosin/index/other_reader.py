"""Pictures of a staged slide by an independent reader, in a process of its own, which damage can end."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
_TIMEOUT_S = 300.0
_LEAST_SIDE_PX, _MOST_SIDE_PX = 96, 4096


@dataclass(frozen=True)
class Place:
    """A square of one level."""

    level_width_px: int
    level_height_px: int
    downsample: float
    x_px: int
    """Its corner in the level, as `y_px`."""
    y_px: int
    side_px: int


def pictures_by_another(path: Path, is_dicom: bool, places: Sequence[Place]) -> list[Pixels | None] | None:
    """[h, w, 3] of the whole slide, small, and of each of `places`, None where that reader has no such level.

    wsidicom's for DICOM where it is installed and reads the slide, else OpenSlide's. None where neither does,
    or the process that asks them dies or takes five minutes.
    """
    wanted = json.dumps([str(path), is_dicom, [asdict(place) for place in places]])
    command = [sys.executable, "-m", "eosin.index.other_reader"]
    with contextlib.suppress(subprocess.SubprocessError):
        done = subprocess.run(
            command, input=wanted.encode(), capture_output=True, check=True, timeout=_TIMEOUT_S
        )
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
            return [_rgb(found.get(str(i))) for i in range(len(places) + 1)]
    return None


def _rgb(pixels: Pixels | None) -> Pixels | None:
    from eosin.slides.decode import over_white  # here: the process that reads would take as long to import it

    return pixels if pixels is None or pixels.shape[2] == 3 else over_white(pixels)


def _answer() -> None:
    path, is_dicom, places = json.load(sys.stdin)
    for read in (_by_wsidicom, _by_openslide) if is_dicom else (_by_openslide,):
        # A library that does not read the slide, or is not there, has no opinion of it.
        with contextlib.suppress(Exception):
            found = read(Path(path), [Place(**place) for place in places])
            pictures = {str(i): each for i, each in enumerate(found) if each is not None}
            np.savez(sys.stdout.buffer, **pictures)  # type: ignore[arg-type]  # arrays by name
            return
    raise SystemExit(1)


def _by_openslide(path: Path, places: Sequence[Place]) -> list[Pixels | None]:
    import openslide

    def region(x_px: int, y_px: int, number: int, size_px: tuple[int, int]) -> Pixels:
        return np.asarray(slide.read_region((x_px, y_px), number, size_px))

    with openslide.OpenSlide(path) as slide:
        sizes = list(slide.level_dimensions)
        if places and sizes[0][0] < places[0].level_width_px:
            raise ValueError("of several images OpenSlide takes the first")
        wide = [i for i, size in enumerate(sizes) if min(size) >= _LEAST_SIDE_PX] or [0]
        found: list[Pixels | None] = [region(0, 0, wide[-1], sizes[wide[-1]])]
        for place in places:
            number = slide.get_best_level_for_downsample(place.downsample * 1.01)
            # Of a finer level where it does not see ours (the SubIFDs of an OME-TIFF).
            side = round(place.side_px * place.downsample / slide.level_downsamples[number])
            corner = (round(place.x_px * place.downsample), round(place.y_px * place.downsample))
            found.append(region(*corner, number, (side, side)) if side <= _MOST_SIDE_PX else None)
        return found


def _by_wsidicom(path: Path, places: Sequence[Place]) -> list[Pixels | None]:
    from wsidicom import WsiDicom

    def rgb(picture: Any) -> Pixels:
        return np.asarray(picture.convert("RGB"))

    with WsiDicom.open([each for each in path.parent.rglob("*") if each.is_file()]) as slide:
        levels = {(each.size.width, each.size.height): each.level for each in slide.levels}
        found: list[Pixels | None] = [rgb(slide.read_thumbnail((512, 512)))]
        for place in places:
            number = levels.get((place.level_width_px, place.level_height_px))
            corner, side = (place.x_px, place.y_px), (place.side_px, place.side_px)
            found.append(None if number is None else rgb(slide.read_region(corner, number, side)))
        return found


if __name__ == "__main__":
    _answer()
