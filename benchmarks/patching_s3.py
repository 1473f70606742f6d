"""Online Patching from S3 against tiffslide + s3fs: patches per CPU second of the client, in one run.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install tiffslide==2.5.1 s3fs==2026.9.0
    python benchmarks/patching_s3.py --peer /tmp/peer/bin/python [--patches 120] [--rounds 5]

With --dicom, of DICOM series (three levels, JPEG, basic offset tables) against wsidicom 0.36.1 + s3fs.

A SeaweedFS on loopback serves slides to both; its own CPU is not counted. Both sides read the same random
224 px patches of level 0 in turns. The peer's slides are opened beforehand and it reads without look-ahead,
which is its best. Prints one JSON line: CPU milliseconds a patch of the client and their ratio (medians),
end-to-end patches a second, requests and bytes a patch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
from material import (
    BATCH,
    PATCH_PX,
    cpu_s,
    index_slides,
    load,
    median_ratio,
    sampler_of,
    stream_all,
    write_slides,
)

from eosin.demo.server import LocalS3
from eosin.observability import RunLog
from eosin.patches.geometry import box_of
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.storage import Store, open_store

_BUCKET = "s3://eosin-benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", required=True, help="a Python that has tiffslide and s3fs")
    parser.add_argument("--patches", type=int, default=120, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=64, help="so that a batch hardly meets one twice")
    parser.add_argument(
        "--dicom", action="store_true", help="series of DICOM; the peer has wsidicom and s3fs"
    )
    parser.add_argument("--side", type=int, default=8192, help="of a slide, px")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        folder = Path(name)
        with served(folder, arguments) as sampler:
            print(json.dumps(compare(sampler, arguments, folder / "peer.npy")), flush=True)


@contextmanager
def served(folder: Path, arguments: argparse.Namespace) -> Iterator[Sampler]:
    """A sampler of slides that lie in a bucket; the environment names its server."""
    with LocalS3(folder / "s3") as server:
        server.ensure_bucket(_BUCKET)
        os.environ.update(server.env)
        slides, made = open_store(f"{_BUCKET}/slides"), write_slides(folder / "slides", 2, arguments.side)
        for copy in range(arguments.slides // 2):
            for path in sorted(made.iterdir()):
                if arguments.dicom:
                    put_series(slides, f"{copy:03d}-{path.stem}", path, folder)
                else:
                    slides.put_file(f"{copy:03d}/{path.name}", path)
        yield sampler_of(index_slides(f"{_BUCKET}/slides", f"{_BUCKET}/index"), 0.25)


def put_series(store: Store, name: str, slide: Path, folder: Path) -> None:
    """The levels of an SVS as the instances of a series of its own."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from pydicom.dataset import Dataset

    from tests.support.slide_files import write_dicom

    def with_path(dataset: Dataset) -> None:
        illumination, path = Dataset(), Dataset()
        illumination.CodeValue, illumination.CodingSchemeDesignator = "111744", "DCM"
        illumination.CodeMeaning = "Brightfield illumination"
        path.IlluminationTypeCodeSequence, path.OpticalPathIdentifier = [illumination], "0"
        dataset.OpticalPathSequence, dataset.NumberOfOpticalPaths = [path], 1
        dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = width_px * 2.5e-4, height_px * 2.5e-4
        dataset.ImagedVolumeDepth, dataset.VolumetricProperties = 0.001, "VOLUME"
        dataset.FocusMethod, dataset.ExtendedDepthOfField = "AUTO", "NO"
        dataset.SpecimenLabelInImage = dataset.BurnedInAnnotation = "NO"
        dataset.LossyImageCompression = "01"
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
        dataset.TotalPixelMatrixOriginSequence = [origin]

    with openslide.OpenSlide(slide) as opened:
        width_px, height_px = opened.dimensions
        for level, size in enumerate(opened.level_dimensions):
            pixels = np.asarray(opened.read_region((0, 0), level, size).convert("RGB"))
            uid = f"1.2.826.{1 + int.from_bytes(name.encode())}"[:60]
            path = write_dicom(
                folder / f"{level}.dcm", pixels, level=2 * level, tile_px=240, mpp=(0.25, 0.25), series=uid,
                change=with_path,
            )  # fmt: skip
            store.put_file(f"{name}/{level}.dcm", path)


def compare(sampler: Sampler, arguments: argparse.Namespace, kept: Path) -> dict[str, object]:
    num_steps = max(1, arguments.patches // BATCH)
    ours: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
    theirs: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
    stream_all(sampler, [10_000], num_threads=2)
    script = "wsidicom_s3fs.py" if arguments.dicom else "tiffslide_s3fs.py"
    with peer(arguments.peer, script) as ask:
        ask(regions(sampler, range(10_000, 10_001)), str(kept))
        for number in range(arguments.rounds):
            steps = range(number * num_steps, (number + 1) * num_steps)
            used_s, took_s = cpu_and_wall_s(partial(stream_all, sampler, steps))
            ours["cpu_s"].append(used_s)
            ours["wall_s"].append(took_s)
            answer = ask(regions(sampler, steps), "")
            for name, values in theirs.items():
                values.append(answer[name])
    num_patches = num_steps * BATCH
    return {
        "eosin_cpu_ms": round(1000 * statistics.median(ours["cpu_s"]) / num_patches, 3),
        "peer_cpu_ms": round(1000 * statistics.median(theirs["cpu_s"]) / num_patches, 3),
        "ratio": median_ratio(theirs["cpu_s"], ours["cpu_s"]),
        "eosin_patches_per_s": round(num_patches / statistics.median(ours["wall_s"])),
        "peer_patches_per_s": round(num_patches / statistics.median(theirs["wall_s"])),
        "same_pixels": f"{same_pixels(sampler, np.load(kept))} of {BATCH}",
        "load": load(),
    }


def regions(sampler: Sampler, steps: range) -> list[dict[str, object]]:
    """What the draws of `steps` read, as the peer takes it."""
    found: list[dict[str, object]] = []
    for request in (request for step in steps for request in sampler.draw_batch(step, range(BATCH))):
        row = sampler.snapshot.rows[request.slide]
        box = box_of(request, row.header, PATCH_PX, sampler.config.mpp_tolerance)
        corner, size = (request.x_px, request.y_px), (box.width_px, box.height_px)
        uri = f"{_BUCKET}/slides/{row.slide}"
        found.append({"uri": uri, "level": box.level, "corner_px": corner, "size_px": size})
    return found


def same_pixels(sampler: Sampler, theirs: Any) -> int:
    with PatchStream(sampler, RunLog("benchmark")) as patches:
        (batch,) = patches.batches([(10_000, range(BATCH))])
    return sum(np.array_equal(a, b) for a, b in zip(batch.pixels, theirs, strict=True))


def cpu_and_wall_s(work: Callable[[], object]) -> tuple[float, float]:
    before_s = time.perf_counter()
    return cpu_s(work), time.perf_counter() - before_s


@contextmanager
def peer(python: str, name: str) -> Iterator[Any]:
    script = Path(__file__).parent / "peers" / name
    with subprocess.Popen(
        [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        orders, answers = process.stdin, process.stdout
        assert orders is not None and answers is not None

        def ask(wanted: list[dict[str, object]], keep: str) -> dict[str, float]:
            order = {"regions": wanted, "keep": keep, "cache_type": "none"}
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            answer: dict[str, float] = json.loads(answers.readline())
            return answer

        yield ask
        orders.close()


if __name__ == "__main__":
    main()
