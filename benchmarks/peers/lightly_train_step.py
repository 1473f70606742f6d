"""Training step of lightly-train's DINOv2 on crops that are there: the peer of `training.py --peer PYTHON`.

    PYTHON benchmarks/peers/lightly_train_step.py --model vits14 --images 16 --steps 10

PYTHON has lightly-train 0.18, which eosin's environment need not have. Its own method, heads, losses,
schedules and Lightning trainer; crops, their number and sides, prototypes and precision are those of the
contest, no drop path and no registers. Prints a JSON line: seconds of each step (CPU seconds without a GPU),
and the parameters.
"""

import argparse
import contextlib
import json
import logging
import time
import warnings
from typing import Any

import torch

LOCAL_PX, GLOBAL_PX, NUM_LOCAL = 98, 224, 8


def declare_operators() -> torch.library.Library:
    """PyPI's torchvision does not import beside a CPU build of torch without the two it checks for.

    They are there as long as what is returned is.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # where they are
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


class Crops(torch.utils.data.Dataset[dict[str, Any]]):
    """The same batch again and again, on the device: no data is made while steps are timed."""

    def __init__(self, steps: int, images: int, device: torch.device) -> None:
        self._num = steps * images
        generator = torch.Generator(device).manual_seed(0)
        sides = [GLOBAL_PX] * 2 + [LOCAL_PX] * NUM_LOCAL
        views = [torch.randn(images, 3, side, side, generator=generator, device=device) for side in sides]
        self._batch = {"views": views, "filename": [str(i) for i in range(images)]}

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, _: int) -> dict[str, Any]:
        return self._batch


def build(args: argparse.Namespace) -> Any:
    from lightly_train._methods.dinov2.dinov2 import DINOv2, DINOv2AdamWViTArgs, DINOv2Args
    from lightly_train._models.embedding_model import EmbeddingModel
    from lightly_train._models.package_helpers import get_wrapped_model

    name, without = f"dinov2/{args.model}-notpretrained", {"drop_path_rate": 0.0}
    wrapped = get_wrapped_model(name, num_input_channels=3, model_args=without)
    optimizer = DINOv2AdamWViTArgs()
    method = DINOv2Args(
        output_dim=args.prototypes, dino_bottleneck_dim=args.bottleneck_dim, ibot_separate_head=False,
        center_method="sinkhorn_knopp", weight_decay_start=optimizer.weight_decay,
        warmup_steps=2, student_freeze_last_layer_steps=0,
    )  # fmt: skip
    return DINOv2(method, optimizer, EmbeddingModel(wrapped), args.images, 3)


def timed(args: argparse.Namespace, device: torch.device) -> tuple[list[float], Any]:
    """Seconds of every step after the first few: of the GPU by the clock around a wait, on a CPU its own."""
    import pytorch_lightning as lightning

    class Watch(lightning.Callback):  # type: ignore[misc]  # the library is not here
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def _now(self) -> float:
            if device.type == "cpu":
                return time.process_time()
            torch.cuda.synchronize(device)
            return time.perf_counter()

        def on_train_batch_start(self, *_: Any) -> None:
            self._began = self._now()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds.append(self._now() - self._began)

    watch, method, steps = Watch(), build(args), args.warm_up + args.steps
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1,
        precision="bf16-mixed" if args.precision == "bf16" else "32-true", logger=False, callbacks=[watch],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
    )  # fmt: skip
    trainer.fit(method, torch.utils.data.DataLoader(Crops(steps, args.images, device), batch_size=None))
    return watch.seconds[args.warm_up :], method


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vits14", choices=["vits14", "vitb14"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--bottleneck-dim", type=int, default=256)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="float32")
    args = parser.parse_args()
    operators = [] if torch.cuda.is_available() else [declare_operators()]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    seconds, method = timed(args, device)
    backbone = method.student_embedding_model.parameters()
    found = {"step_s": seconds, "backbone_parameters": sum(each.numel() for each in backbone)}
    print(json.dumps(found))
    del operators


if __name__ == "__main__":
    main()
