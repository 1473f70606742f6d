"""Our linear probe against kaiko-eva's, on the same embeddings, in the same process.

    pip install kaiko-eva==0.4.5     (its core alone is used)
    python benchmarks/evaluation.py [EMBEDDINGS.npz] [--num-steps 12500] [--num-runs 5]

EMBEDDINGS.npz holds float32 `train` [N, D], `val` [M, D] and int64 `train_labels`, `val_labels`; without
it a Gaussian mixture stands in, hard enough that neither probe is perfect. Both follow the protocol of
patch classification: a linear layer, AdamW, batch 256, learning rate 3e-4, best validation epoch, and
the balanced accuracy of that epoch on validation. Prints one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eosin.config.heads import AbmilConfig, ProbeConfig
from eosin.evaluation.heads.linear import Part, train_probes
from eosin.models.arch import define_missing_ops


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("embeddings", nargs="?", type=Path)
    parser.add_argument("--num-steps", type=int, default=12_500)
    parser.add_argument("--num-runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, val, num_classes = load(options.embeddings)
    config = ProbeConfig(num_steps=options.num_steps, num_runs=options.num_runs)
    ours, ours_s, ours_cpu_s = timed(
        lambda: list(train_probes(train, val, num_classes, config, seed=0).best_score)
    )
    theirs, theirs_s, theirs_cpu_s = timed(
        lambda: [eva_run(train, val, num_classes, config, run) for run in range(config.num_runs)]
    )
    print(json.dumps({
        "train": list(train.features.shape), "val": len(val), "classes": num_classes, **config.model_dump(),
        "eosin": {"balanced_accuracy": summary(ours), "seconds": ours_s, "cpu_seconds": ours_cpu_s},
        "eva": {"balanced_accuracy": summary(theirs), "seconds": theirs_s, "cpu_seconds": theirs_cpu_s},
        "times_faster": theirs_s / ours_s, "times_faster_by_cpu": theirs_cpu_s / ours_cpu_s,
    }))  # fmt: skip


def load(path: Path | None) -> tuple[Part, Part, int]:
    """Training part, validation part, number of classes."""
    if path is not None:
        with np.load(path) as arrays:
            parts = [
                Part(
                    torch.from_numpy(arrays[name]).float(), torch.from_numpy(arrays[f"{name}_labels"]).long()
                )
                for name in ("train", "val")
            ]
        return parts[0], parts[1], int(parts[0].classes.max()) + 1
    generator = torch.Generator().manual_seed(0)
    centres = 0.12 * torch.randn(8, 384, generator=generator)
    return mixture(centres, 2000, generator), mixture(centres, 1000, generator), 8


def mixture(centres: torch.Tensor, count: int, generator: torch.Generator) -> Part:
    classes = torch.randint(len(centres), (count,), generator=generator)
    return Part(centres[classes] + torch.randn(count, centres.shape[1], generator=generator), classes)


def timed(run: Callable[[], list[float]]) -> tuple[list[float], float, float]:
    """Scores, seconds, and CPU seconds, which other processes on the machine disturb less."""
    began, began_cpu = time.perf_counter(), time.process_time()
    scores = run()
    return scores, time.perf_counter() - began, time.process_time() - began_cpu


def summary(scores: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(scores), "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "values": scores}  # fmt: skip


def eva_run(train: Part, val: Part, num_classes: int, config: ProbeConfig, run: int) -> float:
    """One run of eva's head on features, as its offline patch classification trains it."""
    return eva_fit(
        lambda: torch.nn.Linear(train.features.shape[1], num_classes), num_classes, config, run,
        loader(train, config, shuffle=True), loader(val, config, shuffle=False), max_steps=config.num_steps,
    )  # fmt: skip


def eva_fit(
    make_head: Callable[[], torch.nn.Module], num_classes: int, config: ProbeConfig | AbmilConfig, run: int,
    train: Any, val: Any, **length: int,
) -> float:  # fmt: skip
    """Best validation accuracy (mean over classes) of eva's head module, trained by its trainer."""
    define_missing_ops()
    import lightning
    from eva.core.metrics import AverageLoss, MulticlassClassificationMetrics
    from eva.core.metrics.structs import MetricsSchema
    from eva.core.models.modules import HeadModule
    from lightning.pytorch.callbacks import ModelCheckpoint

    lightning.seed_everything(run, verbose=False)
    module = HeadModule(
        head=make_head(),
        criterion=torch.nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=config.lr, weight_decay=config.weight_decay
        ),
        metrics=MetricsSchema(
            common=[AverageLoss(), MulticlassClassificationMetrics(num_classes=num_classes)]
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/MulticlassAccuracy", mode="max")
        trainer = lightning.Trainer(
            **{"max_epochs": -1, **length}, accelerator="cpu", logger=False, callbacks=[best],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, train, val)
        assert best.best_model_score is not None
        return float(best.best_model_score)


def loader(part: Part, config: ProbeConfig, *, shuffle: bool) -> Any:
    pairs = zip(part.features, part.classes, strict=True)
    samples: Any = [(features, label, {}) for features, label in pairs]
    return torch.utils.data.DataLoader(samples, batch_size=config.batch_size, shuffle=shuffle)


if __name__ == "__main__":
    main()
