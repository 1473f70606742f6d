"""A tiny run on arrays instead of slides, and the worker that trains it: `-m tests.support.training_run`."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eosin.config import RunConfig
from eosin.observability import RunLog
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.records import IndexPin
from eosin.runs import pin_index, prepare_run

PATCH_PX = 24
CONSUMED = "EOSIN_TEST_CONSUMED"
POISONED_STEP = "EOSIN_TEST_POISONED_STEP"
STEP_DELAY_S = "EOSIN_TEST_STEP_DELAY_S"


class ArraySource:
    """Patches made of numbers: a pure function of (step, index), like real ones."""

    def __init__(self, log_folder: str | None = None) -> None:
        self._log = Path(log_folder) / f"consumed-{os.getpid()}.jsonl" if log_folder else None

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[PatchBatch]:
        for step, indices in wanted:
            if self._log is not None:
                with self._log.open("a") as lines:
                    lines.write(json.dumps([step, list(indices)]) + "\n")
            pixels = [patch(step, index) for index in indices]
            stacked = np.stack(pixels) if pixels else np.empty((0, PATCH_PX, PATCH_PX, 3), np.uint8)
            yield PatchBatch(stacked, tuple(PatchRequest(step, i, i % 7, 10 * i, 3, 0.5) for i in indices))

    def close(self) -> None:
        pass


def patch(step: int, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [PATCH_PX, PATCH_PX, 3]: stripes of a width and colour of its own, with noise."""
    rng = np.random.default_rng([step, index])
    x = np.arange(PATCH_PX)
    stripes = np.sin(x * rng.uniform(0.3, 2.0) + rng.uniform(0, 6))[:, None, None] * rng.uniform(20, 90, 3)
    noise = rng.normal(0, 15, (PATCH_PX, PATCH_PX, 3))
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.clip(150 + stripes + noise, 0, 255).astype(np.uint8)
    return pixels


def tiny_config(**train: Any) -> RunConfig:
    """A ViT of 3 blocks and 32 features; 8 microbatches of 2 patches."""
    optimizer = {"lr": 4e-3, "warmup_steps": 3, "freeze_last_layer_steps": 2, **train.pop("optimizer", {})}
    elastic = {"shutdown_timeout_s": 10, "keep_alive_interval_s": 1, **train.pop("elastic", {})}
    augment = {"global_px": 16, "local_px": 8, "num_local": 3, **train.pop("augment", {})}
    model = {
        "arch": "vit_tiny_patch16_224",
        "arch_args": {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2},
        "layer_scale": 0.1,
        "drop_path": 0.2,
        "dino_head": {"num_prototypes": 64, "hidden_dim": 32, "bottleneck_dim": 16},
        **train.pop("model", {}),
    }
    return RunConfig.model_validate(
        {
            "seed": 5,
            "patches": {"patch_px": PATCH_PX, "mpp": [0.5]},
            "augment": augment,
            "model": model,
            "train": {
                "num_steps": 20, "batch_size": 16, "num_microbatches": 8, "precision": "float32",
                "checkpoint_every_steps": 5, "export_every_steps": 10, "log_every_steps": 5,
                "snapshot_every_steps": 1, "optimizer": optimizer, "elastic": elastic, **train,
            },
        }
    )  # fmt: skip


def begin(run_uri: str, config: RunConfig) -> RunConfig:
    """Publish the run's configuration and a pin to no index in particular."""
    config = prepare_run(run_uri, config)
    pin_index(run_uri, IndexPin(index_uri=config.index.uri or "", snapshot_id="0" * 16))
    return config


def main() -> int:
    from eosin.training.worker import Feed, guarded, run_worker

    def open_feed(config: RunConfig, pin: IndexPin, log: RunLog) -> Feed:
        poison()
        return Feed(ArraySource(os.environ.get(CONSUMED)), lambda row: f"slide-{row}.svs")

    return guarded(lambda: run_worker(sys.argv[1], open_feed))


def poison() -> None:
    """Make one step's crops infinite, or every step slow, where the test's environment says so."""
    import time

    from eosin.training.engine.microbatch import Microbatch, MicrobatchMaker

    poisoned, delay_s = os.environ.get(POISONED_STEP), float(os.environ.get(STEP_DELAY_S, "0"))
    make = MicrobatchMaker.make

    def slowed(self: MicrobatchMaker, step: int, microbatch: int, *crops: Any) -> Microbatch:
        time.sleep(delay_s)
        if poisoned == str(step) and microbatch == 5:
            crops[0].fill_(float("inf"))
        return make(self, step, microbatch, *crops)

    MicrobatchMaker.make = slowed  # type: ignore[method-assign, assignment]  # a slower one of this test


if __name__ == "__main__":
    from eosin.training.elastic.processes import die_with_agent

    die_with_agent()
    sys.exit(main())
