"""Embeddings a second of a folder of images: eosin's batches against a plain loop over files.

    python benchmarks/embedding.py [--arch vit_tiny_patch16_224] [--num-images 256] [--threads 1]

The plain loop opens an image, normalises it and calls the model, one at a time, which is what a script
does; both give the same embeddings, which is checked. Prints one JSON line. Rates are also told by CPU
time, which other processes on the machine disturb less.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.embeddings.embed import embed
from eosin.evaluation.judged_model import JudgedModel
from eosin.models.arch import import_timm
from eosin.observability import RunLog
from eosin.records import TeacherCard
from eosin.storage import open_store

SIDE_PX, MEAN, STD = 224, 0.5, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = import_timm().create_model(options.arch, num_classes=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder) / "images" / "any", options.num_images)
        subject = as_subject(options.arch, model)
        model(torch.zeros(1, 3, SIDE_PX, SIDE_PX))
        plain, plain_rate = timed(lambda: plain_loop(model, paths), len(paths))
        ours, our_rate = timed(lambda: batched(subject, Path(folder)), len(paths))
    np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-4)
    print(json.dumps({"arch": options.arch, "images": len(paths), "threads": options.threads,
                      "eosin": our_rate, "plain loop": plain_rate,
                      "times_faster": our_rate["per_s"] / plain_rate["per_s"],
                      "times_faster_by_cpu": our_rate["per_cpu_s"] / plain_rate["per_cpu_s"]}))  # fmt: skip


def write_images(folder: Path, num: int) -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{i:05d}.jpg" for i in range(num)]
    for path in paths:
        coarse = Image.fromarray(random.integers(90, 250, (28, 28, 3), dtype=np.uint8))
        coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def as_subject(arch: str, model: Any) -> JudgedModel:
    card = TeacherCard(
        name=arch, step=None, arch=arch, arch_args={}, img_px=SIDE_PX, num_features=int(model.num_features),
        mean=(MEAN,) * 3, std=(STD,) * 3, mpp=(), weights_sha256="",
    )  # fmt: skip
    return JudgedModel(arch, None, "benchmark", lambda: (model, card))


def timed(run: Callable[[], Any], num: int) -> tuple[Any, dict[str, float]]:
    began, began_cpu = time.perf_counter(), time.process_time()
    found = run()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return found, {"per_s": num / elapsed, "per_cpu_s": num / cpu}


@torch.inference_mode()
def plain_loop(model: Any, paths: list[Path]) -> Any:
    rows = []
    for path in paths:
        pixels = np.array(Image.open(path).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 255
        rows.append(model((image - MEAN) / STD))
    return torch.cat(rows).numpy()


def batched(subject: JudgedModel, folder: Path) -> Any:
    dataset = open_dataset(f"file://{folder}/images")
    store = open_store(f"file://{folder}/store")
    return embed(subject, dataset, store=store, batch_size=64, log=RunLog("benchmark")).features


if __name__ == "__main__":
    main()
