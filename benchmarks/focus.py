"""How much blurred tissue the index leaves out, and how much sharp tissue it keeps.

    python benchmarks/focus.py --mpp 0.5 [--image-mpp 0.25] IMAGE_OR_SLIDE …

Fields of tissue (images of one size side by side, or one slide) of `--image-mpp` µm a pixel are averaged
down to `--mpp` and written as a JPEG pyramid of levels 1/4/16. The right half is then blurred by a Gaussian,
and the slide is indexed again. Prints one JSON line: for each blur, the share of tissue kept left and left
out right.
"""

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import tifffile
from material import index_slides, load

Pixels = npt.NDArray[np.uint8]
_APERIO = "Aperio \r\n|AppMag = 20|MPP = {mpp}"
_COLUMNS = 10
_LEAST_SIDE_PX = 4096
# Mask pixels of 8 µm beside the edge of the blur that belong to neither half.
_BETWEEN = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--image-mpp", type=float, default=0.25)
    parser.add_argument("--quality", type=int, default=70)
    parser.add_argument("--blur-um", type=float, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    field = field_of(arguments.paths, arguments.image_mpp / arguments.mpp)
    whole = tissue_of(field, arguments.mpp, arguments.quality, "index.tissue.least_detail=0")
    found = {"sharp": shares(tissue_of(field, arguments.mpp, arguments.quality), whole)}
    for blur_um in arguments.blur_um:
        half = field.shape[1] // 2
        blurred = field.copy()
        blurred[:, half:] = cv2.GaussianBlur(field[:, half:], (0, 0), blur_um / arguments.mpp)
        found[f"{blur_um:g} µm"] = shares(tissue_of(blurred, arguments.mpp, arguments.quality), whole)
    print(json.dumps({"field_px": field.shape[1::-1], **found, "load": load()}, ensure_ascii=False))


def field_of(paths: list[Path], scale: float) -> Pixels:
    """The images side by side, turned and mirrored until the field is large enough to be judged."""
    images = [read(path, scale) for path in paths]
    side_px = min(min(image.shape[:2]) for image in images)
    if len(images) > 1:
        images = [image[:side_px, :side_px] for image in images]
    columns = min(_COLUMNS, len(images))
    rows = [
        np.hstack(images[at : at + columns]) for at in range(0, len(images) // columns * columns, columns)
    ]
    field = np.vstack(rows)
    while field.shape[0] < _LEAST_SIDE_PX:
        field = np.vstack([field, field[::-1]])
    while field.shape[1] < _LEAST_SIDE_PX:
        field = np.hstack([field, field[:, ::-1]])
    height, width = (extent // 16 * 16 for extent in field.shape[:2])
    return np.ascontiguousarray(field[:height, :width])


def read(path: Path, scale: float) -> Pixels:
    with openslide.open_slide(path) as slide:
        pixels: Pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    return (
        cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale != 1 else pixels
    )


def tissue_of(field: Pixels, mpp: float, quality: int, *settings: str) -> npt.NDArray[np.bool_]:
    """The tissue mask that the index makes of a slide that shows `field`."""
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        slides = Path(name, "slides")
        slides.mkdir()
        with tifffile.TiffWriter(slides / "a.svs") as writer:
            for down in (1, 4, 16):
                size = (field.shape[1] // down, field.shape[0] // down)
                level = cv2.resize(field, size, interpolation=cv2.INTER_AREA)
                writer.write(
                    level, tile=(240, 240), photometric="rgb", metadata=None, compression="jpeg",
                    compressionargs={"level": quality}, description=_APERIO.format(mpp=mpp),
                )  # fmt: skip
        snapshot = index_slides(str(slides), str(Path(name, "index")), *settings)
        tissue = snapshot.rows[0].tissue
        assert tissue is not None
        return tissue.array


def shares(mask: npt.NDArray[np.bool_], whole: npt.NDArray[np.bool_]) -> dict[str, float]:
    middle = mask.shape[1] // 2
    left, right = (slice(None), slice(0, middle - _BETWEEN)), (slice(None), slice(middle + _BETWEEN, None))
    kept = [float((mask & whole)[part].sum() / whole[part].sum()) for part in (left, right)]
    return {"kept_left": round(kept[0], 3), "left_out_right": round(1 - kept[1], 3)}


if __name__ == "__main__":
    main()
