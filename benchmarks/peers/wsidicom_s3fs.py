"""The peer of `patching_s3.py --dicom`, in a Python of its own: regions of series in S3 through wsidicom.

One JSON line in, one out, as `tiffslide_s3fs.py`. Slides are opened before the clock runs, in one thread, as
everywhere here.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from wsidicom import WsiDicom


def main() -> None:
    slides: dict[str, WsiDicom] = {}
    options = {"s3": {"client_kwargs": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]},
                      "default_cache_type": "none"}}  # fmt: skip
    for line in sys.stdin:
        order = json.loads(line)
        for uri in {region["uri"] for region in order["regions"]} - slides.keys():
            slides[uri] = WsiDicom.open(uri.rpartition("/")[0] + "/", file_options=options["s3"])
        before_s, before_wall_s = time.process_time(), time.perf_counter()
        patches = [read(slides[region["uri"]], region) for region in order["regions"]]
        cpu_s, wall_s = time.process_time() - before_s, time.perf_counter() - before_wall_s
        if order["keep"]:
            np.save(order["keep"], np.stack(patches))
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}), flush=True)


def read(slide: WsiDicom, region: dict[str, Any]) -> npt.NDArray[np.uint8]:
    picture = slide.read_region(tuple(region["corner_px"]), region["level"], tuple(region["size_px"]))
    pixels: npt.NDArray[np.uint8] = np.asarray(picture)[..., :3]
    return pixels


if __name__ == "__main__":
    main()
