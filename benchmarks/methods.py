"""What each method of training is worth on drawn tissue, whose truth is known patch token by patch token.

    python benchmarks/methods.py [--steps 300] [--seeds 0 1] [--methods dinov2 jepa …]

A ViT of 3 blocks and 96 features learns from fields of the demo's eight synthetic tissues, two of them side
by side in half of the patches. Prints one JSON line a method and seed. `class_linear` and `class_knn`:
accuracy of a logistic regression and of the 10 nearest neighbours by class tokens, on fields of stains that
none was trained on; `dense_linear`: of a logistic regression by patch tokens of patches that hold two
tissues; then the two figures of dense health. Chance is 0.125.

Four methods have a comparison of their own, told by the name: `distill` learns from a network that was
taught the tissues by their labels; `three-mpp` and `continuous-mpp` learn from 0.25, 0.5 and 1 µm a pixel
or from all between, and are judged at 0.35 and 0.71 by what is fitted to the three; `skewed` and `curated`
learn from a pool of which four fifths are one tissue, the second by clusters of the first one's features
(`curated` prints both); `larger` has crops of 64 and 32 px, `mixed-px` steps of those, of 48 and 24 px as all
others, and of 64 and 24.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from eosin.config import RunConfig
from eosin.config.patches import CurationConfig
from eosin.demo.synthetic.config import CLASS_NAMES
from eosin.demo.synthetic.scene import draw_field
from eosin.demo.synthetic.texture import Stain
from eosin.models.export import export_teacher
from eosin.observability import RunLog
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.clusters import balanced
from eosin.storage import open_store
from eosin.training.engine.dense_health import NAMES, dense_health
from eosin.training.loop import ReachedStep, Trainer
from eosin.training.world import World

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Patch = tuple[Pixels, Labels]
PATCH_PX, FIELD_PX, TOKEN_PX, DIM = 96, 320, 8, 96
NUM_TISSUES = len(CLASS_NAMES)
PUBLISHED_MPP = (0.25, 0.5, 1.0)
MPP_BETWEEN = (0.354, 0.707)
METHODS: dict[str, dict[str, Any]] = {
    "dinov2": {},
    "no-ibot": {"ibot": {"weight": 0.0}},
    "jepa": {"ibot": {"weight": 0.0}, "jepa": {"weight": 1.0, "predictor_depth": 2}},
    "gram": {"gram": {"weight": 2.0}},
    "paka": {"paka": {"weight": 1.0, "hidden_dim": 256, "out_dim": 64}},
    "three-mpp": {},
    "continuous-mpp": {},
    "curated": {},
    "larger": {},
    "mixed-px": {},
}
LARGER = {"global_px": 64, "local_px": 32}
MIXED_PX = [
    {"global_px": 48, "local_px": 24, "weight": 0.5}, {"global_px": 64, "local_px": 24, "weight": 0.25},
    {"global_px": 64, "local_px": 32, "weight": 0.25},
]  # fmt: skip
AUGMENT: dict[str, dict[str, Any]] = {"larger": LARGER, "mixed-px": {**LARGER, "mixed_px": MIXED_PX}}


@cache
def field(split: str, number: int, tissue: int, mpp: float) -> Pixels:
    """A field of one tissue; each split has stains of its own."""
    seed = {"train": 0, "test": 1000}[split] + number
    stain = Stain.of_slide(np.random.default_rng(seed))
    return draw_field(FIELD_PX, FIELD_PX, CLASS_NAMES[tissue], stain, mpp, 100 * seed + tissue)


def patch(
    split: str, rng: np.random.Generator, *, mixed: bool = False, mpp: Sequence[float] = (0.5,),
    weights: Sequence[float] | None = None,
) -> Patch:  # fmt: skip
    """Pixels [96, 96, 3] and the tissue of each pixel; mixed: two tissues of one stain, cut by a line."""
    number = int(rng.integers(12 if split == "train" else 6))
    first, second = rng.choice(NUM_TISSUES, 2, replace=False, p=weights)
    top, left = rng.integers(0, FIELD_PX - PATCH_PX, 2)
    chosen = float(mpp[int(rng.integers(len(mpp)))])
    window = np.s_[top : top + PATCH_PX, left : left + PATCH_PX]
    truth = np.full((PATCH_PX, PATCH_PX), first)
    if mixed:
        angle, y, x = rng.uniform(0, 2 * np.pi), *np.mgrid[-47.5:47.5:96j, -47.5:47.5:96j]
        truth[y * np.sin(angle) + x * np.cos(angle) > rng.uniform(-8, 8)] = second
    pixels = field(split, number, int(first), chosen)[window].copy()
    other = truth == second
    pixels[other] = field(split, number, int(second), chosen)[window][other]
    return pixels, truth


class FieldSource:
    """Patches that `draw` makes of a step and an index, a pure function of both."""

    def __init__(self, draw: Callable[[int, int], Pixels]) -> None:
        self._draw = draw

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[PatchBatch]:
        for step, indices in wanted:
            pixels = np.stack([self._draw(step, index) for index in indices])
            yield PatchBatch(pixels, tuple(PatchRequest(step, i, 0, 0, 0, 0.5) for i in indices))

    def close(self) -> None:
        """Nothing is open."""


def configuration(steps: int, seed: int, method: str = "dinov2", **train: Any) -> RunConfig:
    head = {"num_prototypes": 256, "hidden_dim": 512, "bottleneck_dim": 64, "num_layers": 2}
    optimizer = {
        "lr": 8e-3,
        "warmup_steps": min(30, steps - 1),
        "freeze_last_layer_steps": 10,
        "patch_embed_lr_multiplier": 1.0,
    }
    return RunConfig.model_validate(
        {
            "seed": seed,
            "patches": {"patch_px": PATCH_PX, "mpp": [0.5]},
            "augment": {
                "global_px": 48, "local_px": 24, "num_local": 2, "global_scale": [0.4, 0.8],
                "local_scale": [0.12, 0.3], "stain_jitter": 0.15, "grayscale": 0.35,
                **AUGMENT.get(method, {}),
            },
            "model": {
                "arch": "vit_tiny_patch16_224", "layer_scale": 0.1,
                "arch_args": {"patch_size": TOKEN_PX, "embed_dim": DIM, "depth": 3, "num_heads": DIM // 32},
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


def trained(config: RunConfig, draw: Callable[[int, int], Pixels]) -> Trainer:
    trainer = Trainer(config, World(config.train.num_microbatches), RunLog("train"))
    trainer.run(FieldSource(draw), ReachedStep(0, None), None, str)
    return trainer


@torch.no_grad()
def embed(trainer: Trainer, patches: Sequence[Patch]) -> tuple[Tensor, Tensor, Tensor]:
    """Class tokens [num, dim], patch tokens [num, tokens, dim] and the tissue of each token's centre."""
    images = torch.tensor(np.stack([pixels for pixels, _ in patches])).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = torch.cat([trainer.learner.teacher.backbone(part) for part in images.split(50)])
    centres = slice(TOKEN_PX // 2, None, TOKEN_PX)
    truth = torch.tensor(np.stack([truth[centres, centres].ravel() for _, truth in patches]))
    return tokens[:, 0], tokens[:, 1:], truth


def neighbours_accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> float:
    """Share of `test` rows whose 10 nearest `train` rows by cosine mostly have their label."""
    nearest = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(10).indices
    votes = F.one_hot(labels[nearest], NUM_TISSUES).sum(1)
    return float((votes.argmax(1) == wanted).float().mean())


def linear_accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> float:
    """Share of `test` rows that a logistic regression of standardised `train` rows gives their label."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    fitted = LogisticRegression(C=0.1, max_iter=300).fit(((train - mean) / std).numpy(), labels.numpy())
    return float(fitted.score(((test - mean) / std).numpy(), wanted.numpy()))


def judged(trainer: Trainer, *, between: bool = False) -> dict[str, float]:
    def drawn(split: str, num: int, *, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        mpp = (PUBLISHED_MPP if split == "train" else MPP_BETWEEN) if between else (0.5,)
        rngs = [np.random.default_rng([11, mixed, i]) for i in range(num)]
        return embed(trainer, [patch(split, rng, mixed=mixed, mpp=mpp) for rng in rngs])

    classes, _, truth = drawn("train", 1000, mixed=False)
    tests, _, wanted = drawn("test", 1000, mixed=False)
    _, patches, labels = drawn("train", 50, mixed=True)
    own, others, right = drawn("test", 60, mixed=True)
    dense = patches.flatten(0, 1), labels.flatten(), others.flatten(0, 1), right.flatten()
    figures = {
        "class_linear": linear_accuracy(classes, truth[:, 0], tests, wanted[:, 0]),
        "class_knn": neighbours_accuracy(classes, truth[:, 0], tests, wanted[:, 0]),
        "dense_linear": linear_accuracy(*dense),
        **dict(zip(NAMES, dense_health(own, others).tolist(), strict=True)),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def draw_even(step: int, index: int) -> Pixels:
    """Half of the patches hold two tissues; all at 0.5 µm a pixel."""
    return patch("train", np.random.default_rng([7, step, index]), mixed=bool(index % 2))[0]


def draw_at(mpp: Sequence[float]) -> Callable[[int, int], Pixels]:
    return lambda step, index: patch("train", np.random.default_rng([7, step, index]), mpp=mpp)[0]


@cache
def skewed_pool() -> list[Patch]:
    """2000 patches, four fifths of them of the first tissue."""
    weights = [0.8] + [0.2 / (NUM_TISSUES - 1)] * (NUM_TISSUES - 1)
    return [patch("train", np.random.default_rng([13, i]), weights=weights) for i in range(2000)]


def draw_from_pool(weights: npt.NDArray[np.float64]) -> Callable[[int, int], Pixels]:
    edges = np.cumsum(weights / weights.sum())

    def draw(step: int, index: int) -> Pixels:
        place = np.searchsorted(edges, np.random.default_rng([17, step, index]).random())
        return skewed_pool()[min(int(place), len(edges) - 1)][0]

    return draw


def curated_weights(earlier: Trainer, seed: int) -> npt.NDArray[np.float64]:
    """Of each patch of the pool, so that clusters of the earlier teacher's features are drawn alike."""
    features = F.normalize(embed(earlier, skewed_pool())[0], dim=1).numpy()
    clusters = KMeans(40, random_state=seed, n_init=1).fit(features).labels_
    counts = np.bincount(clusters, minlength=40)
    most = CurationConfig.model_fields["max_oversampling"].default
    weights: npt.NDArray[np.float64] = (balanced(counts, (), most) / np.maximum(counts, 1))[clusters]
    return weights


def taught(folder: Path, steps: int) -> str:
    """The folder of a teacher that learnt the tissues by their labels; prints its own figures as a line."""
    config = configuration(1, 5)
    trainer = trained(config, draw_even)
    backbone = trainer.learner.teacher.backbone.requires_grad_(True)
    head = torch.nn.Linear(DIM, NUM_TISSUES)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3)
    for step in range(steps):
        batch = [patch("train", np.random.default_rng([19, step, i])) for i in range(32)]
        images = torch.tensor(np.stack([pixels for pixels, _ in batch])).permute(0, 3, 1, 2) / 127.5 - 1
        labels = torch.tensor([int(truth[0, 0]) for _, truth in batch])
        loss = F.cross_entropy(head(backbone(images)[:, 0]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone.requires_grad_(False)
    export_teacher(open_store(str(folder)), "taught", backbone, config=config, step=1)
    print(json.dumps({"method": "the taught teacher", "steps": steps, **judged(trainer)}), flush=True)
    return str(folder / "teachers" / "taught")


def run(method: str, seed: int, steps: int, teacher: str) -> Trainer:
    train: dict[str, Any] = (
        {"distill": {"teacher": teacher}} if method == "distill" else METHODS.get(method, {})
    )
    if "gram" in train:
        train["gram"] |= {"start_step": steps // 2, "refresh_every_steps": steps // 4}
    config = configuration(steps, seed, method, **train)
    if method.endswith("-mpp"):
        every = tuple(np.geomspace(0.25, 1, 9).round(3)) if method == "continuous-mpp" else PUBLISHED_MPP
        return trained(config, draw_at(every))
    if method in ("skewed", "curated"):
        weights = np.ones(len(skewed_pool()))
        if method == "curated":
            earlier = run("skewed", seed, steps, "")
            print(json.dumps({"method": "skewed", "seed": seed, **judged(earlier)}), flush=True)
            weights = curated_weights(earlier, seed)
            common = sum(w for w, (_, truth) in zip(weights, skewed_pool(), strict=True) if not truth[0, 0])
            print(json.dumps({"share of the common tissue once curated": common / weights.sum()}), flush=True)
        return trained(config, draw_from_pool(weights))
    return trained(config, draw_even)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "distill"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = taught(Path(folder), 2 * arguments.steps) if "distill" in arguments.methods else ""
        for seed in arguments.seeds:
            for method in arguments.methods:
                began = time.process_time()
                trainer = run(method, seed, arguments.steps, teacher)
                used = round(time.process_time() - began)
                figures = {
                    k: round(v, 4) for k, v in judged(trainer, between=method.endswith("-mpp")).items()
                }
                print(json.dumps({"method": method, "seed": seed, **figures, "cpu_s": used}), flush=True)


if __name__ == "__main__":
    main()
