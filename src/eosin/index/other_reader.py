"""Pictures of a staged slide by an independent reader, in a process of its own, which damage can end."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not in the process that reads: numpy takes it as long to import as all else
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

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


_Asked = Callable[[Path, Sequence[Place]], "list[Pixels | None] | None"]


@contextlib.contextmanager
def pictures_by_another(is_dicom: bool) -> Iterator[_Asked]:
    """Called with a slide and places in it: [h, w, 3] of the whole slide, small, and of each place, None
    where that reader has no such level. Called once; its process begins before, while the slide is fetched.

    wsidicom's for DICOM where it is installed and reads the slide, else OpenSlide's. None where neither does,
    or the process that asks them dies or takes five minutes.
    """
    import subprocess

    def ask(path: Path, places: Sequence[Place]) -> "list[Pixels | None] | None":
        wanted = json.dumps([str(path), [asdict(place) for place in places]])
        with contextlib.suppress(subprocess.TimeoutExpired):
            answer, _ = process.communicate(wanted.encode(), timeout=_TIMEOUT_S)
            return None if process.returncode else list(_unpacked(answer))
        return None

    command = [sys.executable, "-m", "eosin.index.other_reader", *(["dicom"] if is_dicom else [])]
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet) as process:
        try:
            yield ask
        finally:
            process.kill()


def _unpacked(data: bytes) -> Iterator["Pixels | None"]:
    import numpy as np

    from eosin.slides.decode import over_white

    shapes, _, samples = data.partition(b"\n")
    at = 0
    for shape in json.loads(shapes):
        if shape is None:
            yield None
            continue
        height, width, num_samples = shape
        pixels = np.frombuffer(samples, np.uint8, height * width * num_samples, at).reshape(shape)
        at += pixels.size
        yield over_white(pixels) if num_samples == 4 else pixels


def _answer() -> None:
    is_dicom = sys.argv[1:] == ["dicom"]
    with contextlib.suppress(ImportError):  # while the slide is fetched
        import_module("wsidicom" if is_dicom else "openslide")
    path, places = json.load(sys.stdin)
    for read in (_by_wsidicom, _by_openslide) if is_dicom else (_by_openslide,):
        # A library that does not read the slide, or is not there, has no opinion of it.
        with contextlib.suppress(Exception):
            found = read(Path(path), [Place(**place) for place in places])
            shapes = [each and (each.height, each.width, len(each.getbands())) for each in found]
            pictures = [each.tobytes() for each in found if each is not None]
            sys.stdout.buffer.write(b"\n".join([json.dumps(shapes).encode(), b"".join(pictures)]))
            return
    raise SystemExit(1)


def _by_openslide(path: Path, places: Sequence[Place]) -> list["Image | None"]:
    import openslide

    with openslide.OpenSlide(path) as slide:
        sizes = list(slide.level_dimensions)
        if places and sizes[0][0] < places[0].level_width_px:
            raise ValueError("of several images OpenSlide takes the first")
        wide = [i for i, size in enumerate(sizes) if min(size) >= _LEAST_SIDE_PX] or [0]
        found: list[Image | None] = [slide.read_region((0, 0), wide[-1], sizes[wide[-1]])]
        for place in places:
            number = slide.get_best_level_for_downsample(place.downsample * 1.01)
            # Of a finer level where it does not see ours (the SubIFDs of an OME-TIFF).
            side = round(place.side_px * place.downsample / slide.level_downsamples[number])
            corner = (round(place.x_px * place.downsample), round(place.y_px * place.downsample))
            size = (side, side)
            found.append(slide.read_region(corner, number, size) if side <= _MOST_SIDE_PX else None)
        return found


def _by_wsidicom(path: Path, places: Sequence[Place]) -> list["Image | None"]:
    from wsidicom import WsiDicom

    def rgb(picture: "Image") -> "Image":
        return picture.convert("RGB")

    with WsiDicom.open([each for each in path.parent.rglob("*") if each.is_file()]) as slide:
        levels = {(each.size.width, each.size.height): each.level for each in slide.levels}
        found: list[Image | None] = [rgb(slide.read_thumbnail((512, 512)))]
        for place in places:
            number = levels.get((place.level_width_px, place.level_height_px))
            corner, side = (place.x_px, place.y_px), (place.side_px, place.side_px)
            found.append(None if number is None else rgb(slide.read_region(corner, number, side)))
        return found


if __name__ == "__main__":
    _answer()
