"""The peer of benchmarks/index.py: tifffile over s3fs, one slide at a time, in an environment of its own.

    python index_peer.py BUCKET/PREFIX MPP

Reads what an index needs (pyramid, tile tables, one tile of each level, the level its tissue is found on),
and finds no tissue. Prints one JSON line: slides, seconds on the wall and of CPU.
"""

import json
import os
import re
import sys
import time

import s3fs
import tifffile


def main() -> None:
    prefix, mpp = sys.argv[1], float(sys.argv[2])
    files = s3fs.S3FileSystem(
        endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], key=os.environ["AWS_ACCESS_KEY_ID"],
        secret=os.environ["AWS_SECRET_ACCESS_KEY"], default_block_size=65536,
    )  # fmt: skip
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    names = files.ls(prefix)
    for name in names:
        with files.open(name, "rb") as file, tifffile.TiffFile(file) as tiff:
            read(tiff, mpp)
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    print(json.dumps({"slides": len(names), "wall_s": wall_s, "cpu_s": cpu_s}))


def read(tiff: tifffile.TiffFile, mpp: float) -> None:
    levels = [page for page in tiff.pages if page.is_tiled]
    slide_mpp = float(re.search(r"MPP = ([0-9.]+)", levels[0].description)[1])  # type: ignore[index]  # theirs all say it
    for page in levels:
        decode, tables = page.decode, page.jpegtables
        largest = max(range(len(page.databytecounts)), key=page.databytecounts.__getitem__)
        tiff.filehandle.seek(page.dataoffsets[largest])
        decode(tiff.filehandle.read(page.databytecounts[largest]), largest, jpegtables=tables)
    width_px = levels[0].imagewidth
    fitting = [page for page in levels if slide_mpp * width_px / page.imagewidth <= mpp * 1.05]
    fitting[-1].asarray(maxworkers=1)


if __name__ == "__main__":
    main()
