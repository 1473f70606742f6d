"""The peer of patching_s3.py, in a Python of its own: regions of slides in S3 through tiffslide and s3fs.

One JSON line in, one out: the regions to read in, CPU seconds out. Slides are opened before the clock runs.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import s3fs
import tiffslide


def main() -> None:
    files = s3fs.S3FileSystem(anon=False)
    slides: dict[str, tiffslide.TiffSlide] = {}
    for line in sys.stdin:
        order = json.loads(line)
        for uri in {region["uri"] for region in order["regions"]} - slides.keys():
            # Whole blocks read ahead, s3fs's default, are wasted on random tiles.
            slides[uri] = tiffslide.TiffSlide(files.open(uri, "rb", cache_type=order["cache_type"]))
        before_s, before_wall_s = time.process_time(), time.perf_counter()
        patches = [read(slides, region) for region in order["regions"]]
        cpu_s, wall_s = time.process_time() - before_s, time.perf_counter() - before_wall_s
        if order["keep"]:
            np.save(order["keep"], np.stack(patches))
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}), flush=True)


def read(slides: dict[str, tiffslide.TiffSlide], region: dict[str, Any]) -> npt.NDArray[np.uint8]:
    slide = slides[region["uri"]]
    place = (region["corner_px"], region["level"], region["size_px"])
    pixels: npt.NDArray[np.uint8] = slide.read_region(*place, as_array=True)
    return pixels


if __name__ == "__main__":
    main()
