"""What each method of training is worth on drawn tissue, whose truth is known patch token by patch token.

    python benchmarks/methods.py [--steps 300] [--seeds 0 1] [--methods dinov2 jepa …] [--teacher-steps 900]

A ViT of 3 blocks and 64 features learns from fields of the demo's eight synthetic tissues, two of them side
by side in half of the patches. Prints one JSON line a method and seed: accuracy of the 10 nearest neighbours
among class tokens of fields of other stains; the same among patch tokens of patches that hold two tissues;
and the two figures of dense health.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.config import RunConfig
from eosin.demo.synthetic.config import CLASS_NAMES
from eosin.demo.synthetic.scene import draw_field
from eosin.demo.synthetic.texture import Stain
from eosin.models.export import export_teacher
from eosin.observability import RunLog
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.storage import open_store
from eosin.training.engine.dense_health import NAMES, dense_health
from eosin.training.loop import ReachedStep, Trainer
from eosin.training.world import World

Pixels = npt.NDArray[np.uint8]
PATCH_PX, CROP_PX, FIELD_PX = 64, 40, 320
JEPA = {"ibot": {"weight": 0.0}, "jepa": {"weight": 1.0, "predictor_depth": 2}}
METHODS: dict[str, dict[str, Any]] = {
    "dinov2": {},
    "no-ibot": {"ibot": {"weight": 0.0}},
    "jepa": JEPA,
    "gram": {"gram": {"weight": 2.0}},
    "gram-2x": {"gram": {"weight": 2.0, "px_multiplier": 2}},
    "paka": {"paka": {"weight": 1.0, "hidden_dim": 256, "out_dim": 64}},
}


@cache
def field(split: str, number: int, tissue: int) -> Pixels:
    """A field of one tissue; each split has stains of its own."""
    seed = {"train": 0, "test": 1000}[split] + number
    stain = Stain.of_slide(np.random.default_rng(seed))
    return draw_field(FIELD_PX, FIELD_PX, CLASS_NAMES[tissue], stain, 0.5, 100 * seed + tissue)


def patch(split: str, rng: np.random.Generator, *, mixed: bool) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Pixels [64, 64, 3] and the tissue of each pixel; mixed: two tissues of one stain, cut by a line."""
    number = int(rng.integers(12 if split == "train" else 6))
    first, second = rng.choice(len(CLASS_NAMES), 2, replace=False)
    top, left = rng.integers(0, FIELD_PX - PATCH_PX, 2)
    window = np.s_[top : top + PATCH_PX, left : left + PATCH_PX]
    truth = np.full((PATCH_PX, PATCH_PX), first)
    if mixed:
        angle, y, x = rng.uniform(0, 2 * np.pi), *np.mgrid[-31.5:31.5:64j, -31.5:31.5:64j]
        truth[y * np.sin(angle) + x * np.cos(angle) > rng.uniform(-8, 8)] = second
    pixels = field(split, number, int(first))[window].copy()
    other = truth == second
    pixels[other] = field(split, number, int(second))[window][other]
    return pixels, truth


class FieldSource:
    """Patches of training, half of them of two tissues; a pure function of (step, index)."""

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[PatchBatch]:
        for step, indices in wanted:
            pixels = [
                patch("train", np.random.default_rng([7, step, index]), mixed=bool(index % 2))[0]
                for index in indices
            ]
            yield PatchBatch(np.stack(pixels), tuple(PatchRequest(step, i, 0, 0, 0, 0.5) for i in indices))

    def close(self) -> None:
        """Nothing is open."""


def configuration(steps: int, seed: int, dim: int = 64, token_px: int = 4, **train: Any) -> RunConfig:
    head = {"num_prototypes": 256, "hidden_dim": 512, "bottleneck_dim": 64, "num_layers": 2}
    optimizer = {
        "lr": 8e-3,
        "warmup_steps": 30,
        "freeze_last_layer_steps": 10,
        "patch_embed_lr_multiplier": 1.0,
    }
    return RunConfig.model_validate(
        {
            "seed": seed,
            "patches": {"patch_px": PATCH_PX, "mpp": [0.5]},
            "augment": {
                "global_px": CROP_PX, "local_px": 16, "num_local": 2, "global_scale": [0.4, 0.8],
                "local_scale": [0.12, 0.3], "stain_jitter": 0.15, "grayscale": 0.35,
            },
            "model": {
                "arch": "vit_tiny_patch16_224", "layer_scale": 0.1,
                "arch_args": {"patch_size": token_px, "embed_dim": dim, "depth": 3, "num_heads": dim // 32},
                "dino_head": head,
            },
            "train": {
                "num_steps": steps, "batch_size": 32, "num_microbatches": 2, "precision": "float32",
                "momentum": 0.97, "log_every_steps": 50, "koleo": {"weight": 0.3},
                "dino": {"teacher_temperature": 0.025, "teacher_temperature_warmup": 0.025},
                "ibot": {"weight": 0.2}, "optimizer": optimizer, **train,
            },
        }
    )  # fmt: skip


def trained(config: RunConfig) -> Trainer:
    trainer = Trainer(config, World(config.train.num_microbatches), RunLog("train"))
    trainer.run(FieldSource(), ReachedStep(0, None), None, str)
    return trainer


@torch.no_grad()
def embed(trainer: Trainer, split: str, num: int, *, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Class tokens [num, dim], patch tokens [num, tokens, dim] and the tissue of each token's centre."""
    drawn = [patch(split, np.random.default_rng([11, mixed, i]), mixed=mixed) for i in range(num)]
    images = torch.tensor(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = torch.cat([trainer.learner.teacher.backbone(part) for part in images.split(50)])
    token_px = trainer.learner.student.backbone.patch_size
    centres = slice(token_px // 2, None, token_px)
    truth = torch.tensor(np.stack([truth[centres, centres].ravel() for _, truth in drawn]))
    return tokens[:, 0], tokens[:, 1:], truth


def neighbours_accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> float:
    """Share of `test` rows whose 10 nearest `train` rows by cosine mostly have their label."""
    nearest = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(10).indices
    votes = F.one_hot(labels[nearest], len(CLASS_NAMES)).sum(1)
    return float((votes.argmax(1) == wanted).float().mean())


def judged(trainer: Trainer) -> dict[str, float]:
    classes, _, truth = embed(trainer, "train", 600, mixed=False)
    tests, _, wanted = embed(trainer, "test", 400, mixed=False)
    whole = neighbours_accuracy(classes, truth[:, 0], tests, wanted[:, 0])
    _, patches, labels = embed(trainer, "train", 40, mixed=True)
    own, others, right = embed(trainer, "test", 40, mixed=True)
    dense = neighbours_accuracy(
        patches.flatten(0, 1), labels.flatten(), others.flatten(0, 1), right.flatten()
    )
    health = dict(zip(NAMES, dense_health(own, others).tolist(), strict=True))
    return {"class_knn": whole, "dense_knn": dense, **health}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--teacher-steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "distill"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = ""
        for seed in arguments.seeds:
            for method in arguments.methods:
                if method == "distill" and not teacher:
                    teacher = _teacher(Path(folder), arguments.teacher_steps)
                train = {"distill": {"teacher": teacher}} if method == "distill" else METHODS[method]
                if "gram" in train:
                    third = arguments.steps // 3
                    train["gram"] |= {"start_step": third, "refresh_every_steps": third}
                figures = judged(trained(configuration(arguments.steps, seed, **train)))
                print(json.dumps({"method": method, "seed": seed, **figures}), flush=True)


def _teacher(folder: Path, steps: int) -> str:
    """The folder of a teacher twice as wide, with patches of 8 px, and its own figures as a line."""
    config = configuration(steps, 5, dim=128, token_px=8)
    trainer = trained(config)
    export_teacher(
        open_store(str(folder)), "big", trainer.learner.teacher.backbone, config=config, step=steps
    )
    print(json.dumps({"method": "the teacher", "steps": steps, **judged(trainer)}), flush=True)
    return str(folder / "teachers" / "big")


if __name__ == "__main__":
    main()
