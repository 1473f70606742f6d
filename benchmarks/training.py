"""Images a second of a training step, beside a plain implementation of the same step, in one run.

    python benchmarks/training.py                        the toy on a CPU; S/16, B/16, L/16 and L/14 on a GPU
    python benchmarks/training.py --network L/14 --compile --drop-path 0.4
    python benchmarks/training.py --network toy --rounds 5 --json out.json

`ours` is the step that `eosin train` takes. `plain` is written for reading: one forward pass a crop size,
all logits at once, autograd for every gradient, no compilation. Both start from the same weights and see the
same batches, and their losses are compared before anything is timed. Utilisation is of the plain model's
operations (`eosin.models.flops`) against the matrix rate measured on this device at the start. Rounds of the
two alternate, so that a busy machine harms both; medians are shown. On a CPU, CPU seconds are taken, which
neighbours disturb less.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.network import Network, build_network
from eosin.training.check import flops_per_image
from eosin.training.engine.objective import TERMS
from eosin.training.engine.slots import Slot, SlotMaker
from eosin.training.engine.step import Learner
from eosin.training.losses.uniformity import koleo
from eosin.training.matrix_rate import measure_matrix_rate
from eosin.training.world import World

_SHARED = {"dino_head": {"num_prototypes": 65536, "bottleneck_dim": 256}}
_SEPARATE = {
    "dino_head": {"num_prototypes": 131072, "bottleneck_dim": 384},
    "ibot_head": {"num_prototypes": 131072, "bottleneck_dim": 256},
}
_TOY = {
    "model": {
        "arch": "vit_tiny_patch16_224", "layer_scale": 0.1,
        "arch_args": {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4},
        "dino_head": {"num_prototypes": 512, "hidden_dim": 256, "bottleneck_dim": 64},
    },
    "augment": {"global_px": 64, "local_px": 32, "num_local": 4},
}  # fmt: skip
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "toy": (_TOY, 32),
    "S/16": ({"model": {"arch": "vit_small_patch16_224", **_SHARED}}, 64),
    "B/16": ({"model": {"arch": "vit_base_patch16_224", **_SHARED}}, 64),
    "L/16": ({"model": {"arch": "vit_large_patch16_224", **_SHARED}}, 32),
    "L/14": (
        {"model": {"arch": "vit_large_patch14_reg4_dinov2", **_SEPARATE}, "augment": {"local_px": 98}},
        32,
    ),
}
"""The network, and the images of a micro-batch."""

PARTS = ("teacher and targets", "forward and losses", "backward", "optimizer and EMA")


@dataclass
class Timing:
    """Seconds of each part of a step, by round."""

    device: torch.device
    parts: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began_s = self._now()
        yield
        self.parts.setdefault(name, []).append(self._now() - began_s)

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Ours:
    """eosin's step, its parts timed from outside."""

    def __init__(self, config: RunConfig, network: Network, device: torch.device, timing: Timing) -> None:
        self.learner = Learner(config, network, World(config.train.num_slots, device=device))
        self._timing = timing

    def step(self, step: int, slots: dict[int, Slot]) -> float:
        learner, timing = self.learner, self._timing
        values = learner.schedules.at(step)
        with timing.part(PARTS[0]), learner._autocast():
            targets = learner.objective.targets(
                learner.teacher, slots, learner.centers, values.teacher_temperature
            )
        learner.spread.begin()
        loss = 0.0
        for index, slot in slots.items():
            with timing.part(PARTS[1]), learner._autocast():
                share = learner.objective.slot_terms(learner.student, index, slot, targets)[
                    : len(TERMS)
                ].sum()
            with timing.part(PARTS[2]):
                share.backward()  # type: ignore[no-untyped-call]
            loss += share.item()
        with timing.part(PARTS[3]):
            learner.spread.finish()
            learner._clip(step)
            learner._update(values)
        return loss


class Plain:
    """The same step, plainly: a forward pass a crop size, whole logits, autograd, a loop over parameters."""

    def __init__(self, config: RunConfig, network: Network, device: torch.device, timing: Timing) -> None:
        self._ours = Learner(config, network, World(config.train.num_slots, device=device))
        self.student, self.teacher = self._ours.student, self._ours.teacher
        self._config, self._timing = config.train, timing
        groups = [
            {"params": g["params"], "multipliers": g["multipliers"]}
            for g in self._ours.optimizer.param_groups
        ]
        betas = (config.train.optimizer.beta1, config.train.optimizer.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, foreach=False, fused=False)

    def step(self, step: int, slots: dict[int, Slot]) -> float:
        values, timing = self._ours.schedules.at(step), self._timing
        (slot,) = slots.values()
        with timing.part(PARTS[0]), torch.no_grad(), self._ours._autocast():
            dino, ibot = self._targets(slot, values.teacher_temperature)
        self.optimizer.zero_grad()
        with timing.part(PARTS[1]), self._ours._autocast():
            loss = self._loss(slot, dino, ibot)
        with timing.part(PARTS[2]):
            loss.backward()  # type: ignore[no-untyped-call]
        with timing.part(PARTS[3]):
            self._update(values)
        return loss.item()

    def _targets(self, slot: Slot, temperature: float) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(self.teacher, slot.global_crops.flatten(0, 1))
        classes = _logits(self.teacher.dino_head, tokens[:, 0]) / temperature
        hidden = tokens[:, self.teacher.backbone.num_prefix_tokens :][slot.masks]
        patches = _logits(self.teacher.patch_head, hidden) / temperature
        return _sinkhorn(classes), _sinkhorn(patches)

    def _loss(self, slot: Slot, dino: Tensor, ibot: Tensor) -> Tensor:
        config, student = self._config, self.student
        num_local, n = slot.local_crops.shape[:2]
        tokens = self._tokens(student, slot.global_crops.flatten(0, 1), slot.masks)
        local = self._tokens(student, slot.local_crops.flatten(0, 1))[:, 0]
        temperature = config.dino.student_temperature
        ours = (_logits(student.dino_head, tokens[:, 0]) / temperature).log_softmax(-1).unflatten(0, (2, n))
        theirs = (
            (_logits(student.dino_head, local) / temperature).log_softmax(-1).unflatten(0, (num_local, n))
        )
        targets = dino.unflatten(0, (2, n))
        crossed = -(ours * targets.flip(0)).sum()
        pairs = -sum((theirs * targets[view]).sum() for view in range(2))
        assert slot.masks is not None
        hidden = tokens[:, student.backbone.num_prefix_tokens :][slot.masks]
        patches = (_logits(student.patch_head, hidden) / temperature).log_softmax(-1)
        weights = (1.0 / slot.masks.sum(1, keepdim=True).clamp(min=1)).expand_as(slot.masks)[slot.masks]
        masked = -((patches * ibot).sum(-1) * weights).sum() / (2 * n)
        views = tokens[:, 0].unflatten(0, (2, n))
        spread = config.koleo_weight * (koleo(views[0]) + koleo(views[1]))
        return (crossed + pairs) / (2 + 2 * num_local) / n + config.ibot.weight * masked + spread

    def _tokens(self, network: Network, images: Tensor, masks: Tensor | None = None) -> Tensor:
        vit, backbone = network.backbone.vit, network.backbone
        x = vit.patch_embed(images)
        if masks is not None:
            x = torch.where(masks.view(*x.shape[:3], 1), backbone.mask_token.to(x.dtype), x)
        x = vit.norm_pre(vit._pos_embed(x))
        for block in vit.blocks:
            x = block(x)
        return vit.norm(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _update(self, values: Any) -> None:
        for module in self.student.submodules().values():
            torch.nn.utils.clip_grad_norm_(module.parameters(), self._config.optimizer.clip_grad_norm or 1e9)
        for group in self.optimizer.param_groups:
            factors = group["multipliers"]
            group["lr"] = factors.lr * (values.last_layer_lr if factors.last_layer else values.lr)
            group["weight_decay"] = factors.weight_decay * values.weight_decay
        self.optimizer.step()
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.mul_(values.momentum).add_(fast, alpha=1 - values.momentum)


def _logits(head: Any, x: Tensor) -> Tensor:
    return F.linear(head(x), head.last_layer.weight()).float()


def _sinkhorn(scores: Tensor, num_iterations: int = 3) -> Tensor:
    q = (scores - scores.max()).exp().T
    q = q / q.sum()
    for _ in range(num_iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def make_config(name: str, args: argparse.Namespace) -> RunConfig:
    """One micro-batch a step: what a GPU does between two updates, many times over in a real run."""
    tree, images = NETWORKS[name]
    batch = args.images or images
    optimizer = {"warmup_steps": 2, "freeze_last_layer_steps": 0, "lr": 1e-3}
    train = {
        "num_steps": 1000,
        "batch_size": batch,
        "num_slots": 1,
        "compile": args.compile,
        "pack": not args.no_pack,
        "precision": args.precision,
        "optimizer": optimizer,
        "ibot": {"weight": 0.2} if name == "toy" else {},
    }
    tree = {**tree, "train": train}
    tree["model"] = {**tree["model"], "drop_path": args.drop_path}
    return RunConfig.model_validate(tree)


def make_slots(config: RunConfig, network: Network, device: torch.device) -> Callable[[int], dict[int, Slot]]:
    """Synthetic crops, the same for both; masks and drop path as in training."""
    backbone, augment = network.backbone, config.augment
    grid = augment.global_px // backbone.patch_size
    maker = SlotMaker(config, grid=grid, depth=backbone.depth, device=device)
    generator = torch.Generator(device).manual_seed(0)
    size = config.train.batch_size
    crops = [
        torch.randn(num, size, 3, side, side, generator=generator, device=device)
        for num, side in ((2, augment.global_px), (augment.num_local, augment.local_px))
    ]
    return lambda step: {0: maker.make(step, 0, *crops)}


def run(name: str, args: argparse.Namespace, device: torch.device, peak: float) -> dict[str, Any]:
    """Figures of one network: ours and plain, rounds alternating."""
    config = make_config(name, args)
    timings = {"ours": Timing(device), "plain": Timing(device)}
    steppers: dict[str, Ours | Plain] = {"ours": Ours(config, build_network(config), device, timings["ours"])}
    if not args.drop_path:
        steppers["plain"] = Plain(config, build_network(config), device, timings["plain"])
    slots = make_slots(config, steppers["ours"].learner.student, device)  # type: ignore[union-attr]
    losses = {which: stepper.step(0, slots(0)) for which, stepper in steppers.items()}
    if "plain" in losses and abs(losses["ours"] / losses["plain"] - 1) > args.tolerance:
        raise SystemExit(f"{name}: the two steps differ: loss {losses['ours']} and {losses['plain']}")
    for warm in range(1, 3):
        for stepper in steppers.values():
            stepper.step(warm, slots(warm))
    memory, data_s = {}, []
    for timing in timings.values():
        timing.parts.clear()
    for step in range(3, 3 + args.rounds):
        began_s = time.perf_counter()
        batch = slots(step)
        data_s.append(time.perf_counter() - began_s)
        for which, stepper in steppers.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            stepper.step(step, batch)
            memory[which] = _memory_gib(device)
    flops = flops_per_image(config, steppers["ours"].learner.student)  # type: ignore[union-attr]
    return {
        "network": name, "images": config.train.batch_size, "gflop_per_image": flops / 1e9,
        "loss": losses, "masks_and_crops_s": statistics.median(data_s),
        **{
            which: _figures(timings[which], config, flops, peak) | {"memory_gib": memory[which]}
            for which in steppers
        },
    }  # fmt: skip


def _figures(timing: Timing, config: RunConfig, flops: float, peak: float) -> dict[str, Any]:
    parts = {name: statistics.median(values) for name, values in timing.parts.items()}
    total_s = sum(parts.values())
    rate = config.train.batch_size / total_s
    shares = {name: value / total_s for name, value in parts.items()}
    return {"images_per_s": rate, "mfu": rate * flops / peak, "step_s": total_s, "shares": shares}


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(result: dict[str, Any]) -> None:
    images, gflop = result["images"], result["gflop_per_image"]
    print(f"\n{result['network']}: {images} images a step, {gflop:.4g} GFLOP an image")
    for which in ("ours", "plain"):
        if which not in result:
            continue
        found = result[which]
        shares = " · ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
        print(
            f"  {which:5}  {found['images_per_s']:8.4g} images/s   MFU {found['mfu']:.1%}"
            f"   peak {found['memory_gib']:.2f} GiB   {shares}"
        )
    if "plain" in result:
        print(f"  ours / plain: {result['ours']['images_per_s'] / result['plain']['images_per_s']:.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, help="images of a micro-batch")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-pack", action="store_true")
    parser.add_argument("--drop-path", type=float, default=0.0, help="ours alone: plain has none")
    parser.add_argument("--precision", choices=["bf16", "float32"])
    parser.add_argument("--tolerance", type=float, help="of the two losses, relative")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    args.network = args.network or (["S/16", "B/16", "L/16", "L/14"] if is_gpu else ["toy"])
    args.precision = args.precision or ("bf16" if is_gpu else "float32")
    args.tolerance = args.tolerance or (1e-2 if args.precision == "bf16" else 1e-5)
    return args


def main() -> None:
    args = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    peak = measure_matrix_rate(device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(
        f"{name}, torch {torch.__version__}, {args.precision}: {peak / 1e12:.4g} TFLOP/s of matrix products"
    )
    results = [run(network, args, device, peak) for network in args.network]
    for result in results:
        show(result)
    if args.json:
        args.json.write_text(
            json.dumps({"device": name, "peak_tflops": peak / 1e12, "results": results}, indent=2)
        )


if __name__ == "__main__":
    main()
