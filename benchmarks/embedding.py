"""Features of slides a second: `eosin embed` against a plain loop over the same patches.

    python benchmarks/embedding.py [SLIDES] [--arch vit_tiny_patch16_224] [--threads 1] [--batch 64]

SLIDES is a folder of slides that OpenSlide reads too; without it drawn ones are written. The plain loop is
what a script does: OpenSlide reads a patch, it is normalised, and the model sees it, one after another. The
features are compared. Prints one JSON line; rates by the clock, since what is gained is time in which the
model does not wait: `data_wait_share` is the share of it in which it does, as `eosin embed` logs it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import torch
from material import PATCH_PX, index_slides, load, write_slides
from safetensors.torch import save_file

from eosin.evaluation.embed_index import EmbedRequest, embed_index
from eosin.models.arch import import_timm
from eosin.observability import RunLog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="?", type=Path)
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument("--threads", type=int, default=1, help="of the model on a CPU")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = import_timm().create_model(options.arch, num_classes=0).eval()
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as name:
        folder = Path(name)
        slides = options.slides or write_slides(folder / "slides", 6, 3000)
        index_slides(str(slides), str(folder / "index"))
        log, weights = _Log(), folder / "weights.safetensors"
        save_file(model.state_dict(), weights)
        began_s = time.perf_counter()
        embed_index(
            EmbedRequest(
                model=f"timm:{options.arch}@file://{weights}", out_uri=str(folder / "features"),
                index_uri=str(folder / "index"), batch_size=options.batch,
                settings=("mpp=0.25", f"patch_px={PATCH_PX}"),
            ), 0, 1, log,
        )  # fmt: skip
        ours_s = time.perf_counter() - began_s
        made = [read(path) for path in sorted((folder / "features").rglob("*.h5"))]
        began_s = time.perf_counter()
        plain = [plain_loop(model, slides / slide, coords) for slide, coords, _ in made]
        plain_s = time.perf_counter() - began_s
    ours = np.concatenate([features for _, _, features in made])
    np.testing.assert_allclose(ours, np.concatenate(plain), rtol=1e-3, atol=1e-3)
    print(json.dumps({
        "arch": options.arch, "patches": len(ours), "threads": options.threads,
        "eosin_per_s": round(len(ours) / ours_s, 1), "plain_per_s": round(len(ours) / plain_s, 1),
        "ratio": round(plain_s / ours_s, 2), "data_wait_share": round(log.data_wait_share, 4), "load": load(),
    }))  # fmt: skip


class _Log(RunLog):
    """Keeps what `eosin embed` says of its waiting."""

    data_wait_share = float("nan")

    def __init__(self) -> None:
        super().__init__("benchmark")

    def event(self, event: str, /, **fields: Any) -> None:
        self.data_wait_share = fields.get("data_wait_share", self.data_wait_share)


def read(path: Path) -> tuple[str, Any, Any]:
    """Key of a slide, the corners of its patches, their features."""
    with h5py.File(path) as file:
        return file["coords"].attrs["slide"], file["coords"][:], file["features"][:]


@torch.inference_mode()
def plain_loop(model: Any, path: Path, coords: Iterable[tuple[int, int]]) -> Any:
    mean, std = (torch.tensor(model.pretrained_cfg[each]).view(1, 3, 1, 1) for each in ("mean", "std"))
    rows = []
    with openslide.OpenSlide(str(path)) as slide:
        for x, y in coords:
            pixels = np.array(slide.read_region((int(x), int(y)), 0, (PATCH_PX, PATCH_PX)).convert("RGB"))
            image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 255
            rows.append(model((image - mean) / std))
    return torch.cat(rows).numpy()


if __name__ == "__main__":
    main()
