"""Images a second of a training step, beside a plain implementation of the same step, in one run.

    python benchmarks/training.py                    S/16, B/16, L/16 and L/14 on a GPU; the toy on a CPU
    python benchmarks/training.py --network L/14 --rounds 20 --json out.json
    python benchmarks/training.py --network toy --compile --no-stream
    python benchmarks/training.py --network S/14 --peer PEER/bin/python     beside lightly-train

For each network:

    plain               one forward pass a crop size, all logits at once, nothing compiled (training_plain.py)
    ours                the step that `eosin train` takes, on synthetic crops; compiled on a GPU
    ours, drop path     the same with the recipe's subset drop path, where the network's recipe has one
    ours, from slides   the same fed by Online Patching: slides drawn here, decoded, cropped, masked
    lightly-train       its own step, by a Python that has lightly-train 0.18 (peers/lightly_train_step.py):
                        same network, images, crops, prototypes, precision and threads, no drop path

The first two start from the same weights and see the same batches, and their losses are compared before
anything is timed. MFU is of the plain model's operations (`eosin.models.flops`; less what a drop path saves)
against the matrix rate measured on this device at the start. Rounds take turns, so that a busy machine harms
all; medians are shown. Seconds are the GPU's own (events), or CPU seconds on a CPU, which neighbours disturb
less; from slides they are the clock's. The plain step's masks are drawn before its time starts.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from clock import Clock
from material import index_slides, write_slides
from training_plain import Plain

from eosin.config import RunConfig
from eosin.models.flops import measure_matrix_rate
from eosin.models.network import Network, build_network
from eosin.observability import RunLog
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.training.check import flops_per_image
from eosin.training.engine.microbatch import Microbatch, MicrobatchMaker
from eosin.training.engine.step import Learner
from eosin.training.loop import Trainer
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
    "S/14": (
        {"model": {"arch": "vit_small_patch14_dinov2", **_SHARED}, "augment": {"local_px": 98}},
        64,
    ),
    "B/14": (
        {"model": {"arch": "vit_base_patch14_dinov2", **_SHARED}, "augment": {"local_px": 98}},
        64,
    ),
    "S/16": ({"model": {"arch": "vit_small_patch16_224", **_SHARED}}, 64),
    "B/16": ({"model": {"arch": "vit_base_patch16_224", **_SHARED}}, 64),
    "L/16": ({"model": {"arch": "vit_large_patch16_224", **_SHARED}}, 32),
    "L/14": (
        {"model": {"arch": "vit_large_patch14_reg4_dinov2", **_SEPARATE}, "augment": {"local_px": 98}},
        32,
    ),
}
"""The network, and the images of a microbatch."""

PARTS = ("data", "teacher", "forward", "losses", "backward", "optimizer", "EMA", "rest")
RECIPE_DROP_PATH = {"L/16": 0.3, "L/14": 0.4}
WARM_UP_STEPS = 3
PEER_MODELS = {"S/14": "vits14", "B/14": "vitb14"}
"""What lightly-train calls the same network."""
MakeMicrobatches = Callable[[int], dict[int, Microbatch]]


class Ours:
    """eosin's step, timed from outside: the next batch is made while the device works, as in training."""

    def __init__(self, config: RunConfig, device: torch.device, clock: Clock) -> None:
        self.learner = Learner(
            config, build_network(config), World(config.train.num_microbatches, device=device)
        )
        self._clock = clock
        self._make = make_microbatches(config, self.learner.student, device)
        self._ready: dict[int, Microbatch] | None = None
        learner, student, teacher = self.learner, self.learner.student, self.learner.teacher
        for network, part in ((student, "forward"), (teacher, "teacher")):
            clock.wrap(network.backbone, "forward", part)
        clock.wrap(learner.objective, "targets", "losses")
        clock.wrap(learner.objective, "microbatch_terms", "losses")
        clock.wrap(learner, "_accumulate", "backward")
        clock.wrap(learner, "_clip", "optimizer")
        clock.wrap(learner.optimizer, "step", "optimizer")
        clock.wrap(learner, "_move_teacher", "EMA")

    def step(self, step: int, microbatches: dict[int, Microbatch]) -> float:
        launched = self.learner.launch(step, self._ready or microbatches)
        with self._clock.part("data"):
            self._ready = self._make(step + 1)
        return self.learner.settle(launched).loss


def make_config(name: str, args: argparse.Namespace, drop_path: float = 0.0) -> RunConfig:
    """One microbatch a step: what a GPU does between two updates, many times over in a real run."""
    tree, images = NETWORKS[name]
    train = {
        "num_steps": 100_000,
        "batch_size": args.images or images,
        "num_microbatches": 1,
        "compile": args.compile,
        "pack": "auto" if args.pack is None else args.pack,
        "activation_checkpointing": args.checkpoint_activations,
        "precision": args.precision,
        "optimizer": {"warmup_steps": 2, "freeze_last_layer_steps": 0, "lr": 1e-3},
        "ibot": {"weight": 0.2} if name == "toy" else {},
    }
    patches = {"patch_px": 96 if name == "toy" else 256, "mpp": [0.25, 0.5]}
    model = {**tree["model"], "drop_path": drop_path}
    return RunConfig.model_validate({**tree, "model": model, "train": train, "patches": patches})


def make_microbatches(config: RunConfig, network: Network, device: torch.device) -> MakeMicrobatches:
    """Synthetic crops, the same for all; masks and drop path as in training."""
    backbone, augment = network.backbone, config.augment
    maker = MicrobatchMaker(config, patch_size=backbone.patch_size, depth=backbone.depth, device=device)
    generator = torch.Generator(device).manual_seed(0)
    size = config.train.batch_size
    crops = [
        torch.randn(num, size, 3, side, side, generator=generator, device=device)
        for num, side in ((2, augment.global_px), (augment.num_local, augment.local_px))
    ]
    return lambda step: {0: maker.make(step, 0, *crops)}


class Contest:
    """Every way of one network, in turns."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device) -> None:
        self.config = make_config(name, args)
        self.configs = {"plain": self.config, "ours": self.config}
        drop_path = RECIPE_DROP_PATH.get(name) if args.drop_path is None else args.drop_path
        if drop_path:
            self.configs[f"ours, drop path {drop_path:g}"] = make_config(name, args, drop_path)
        self._device = device
        self.clocks = {way: Clock(device) for way in self.configs}
        self.losses: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self._resident: dict[str, int] = {}
        self._make: dict[str, MakeMicrobatches] = {}
        self._steppers = {way: self._begin(way) for way in self.configs}

    def _begin(self, way: str) -> Plain | Ours:
        """Build and warm up; what stays allocated afterwards is this way's own."""
        before = self._allocated()
        kind = Plain if way == "plain" else Ours
        stepper = kind(self.configs[way], self._device, self.clocks[way])
        student = stepper.student if isinstance(stepper, Plain) else stepper.learner.student
        make = self._make[way] = make_microbatches(self.configs[way], student, self._device)
        self.losses[way] = stepper.step(0, make(0))
        for step in range(1, WARM_UP_STEPS):
            stepper.step(step, make(step))
        self._resident[way] = self._allocated() - before
        return stepper

    def require_alike(self, tolerance: float) -> None:
        ours, plain = self.losses["ours"], self.losses["plain"]
        if abs(ours / plain - 1) > tolerance:
            raise SystemExit(f"the two steps differ: loss {ours} and {plain}")

    def round(self, step: int) -> None:
        for way, stepper in self._steppers.items():
            microbatches = self._make[way](step) if way == "plain" else {}
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            with self.clocks[way].round():
                stepper.step(step, microbatches)
            others = sum(size for other, size in self._resident.items() if other != way)
            self.memory[way] = peak_bytes(self._device) - others

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0


def run(name: str, args: argparse.Namespace, device: torch.device, peak: float) -> dict[str, Any]:
    """Figures of one network, by way."""
    contest = Contest(name, args, device)
    contest.require_alike(args.tolerance)
    for step in range(WARM_UP_STEPS, WARM_UP_STEPS + args.rounds):
        contest.round(step)
    flops = {way: flops_of(config) for way, config in contest.configs.items()}
    ways = {
        way: figures(clock, contest.config.train.batch_size, flops[way], peak)
        | {"memory_gib": contest.memory[way] / 2**30, "loss": contest.losses[way]}
        for way, clock in contest.clocks.items()
    }
    ratios = [
        sum(plain.values()) / sum(ours.values())
        for plain, ours in zip(contest.clocks["plain"].rounds, contest.clocks["ours"].rounds, strict=True)
    ]
    del contest
    gc.collect()  # the clocks' wrappers hold their owners, which hold them
    result = {"network": name, "images": args.images or NETWORKS[name][1]}
    if args.peer and name in PEER_MODELS:
        found = lightly_train(name, args)
        rate = result["images"] / statistics.median(found["step_s"])
        ways["lightly-train"] = {"images_per_s": rate, "mfu": rate * flops["ours"] / peak}
        result["peer_ratio"] = ways["ours"]["images_per_s"] / rate
    if args.stream:
        ways["ours, from slides"] = from_slides(name, args, device, flops["ours"], peak)
    return result | {
        "gflop_per_image": {way: count / 1e9 for way, count in flops.items()},
        "ratio": statistics.median(ratios), "ways": ways,
    }  # fmt: skip


def lightly_train(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each of lightly-train's steps, in its own environment. Raises `CalledProcessError`."""
    script = Path(__file__).parent / "peers/lightly_train_step.py"
    head = _SHARED["dino_head"]
    command = [args.peer, script, "--model", PEER_MODELS[name], "--precision", args.precision,
               "--images", args.images or NETWORKS[name][1], "--steps", args.rounds, "--prototypes",
               head["num_prototypes"], "--bottleneck-dim", head["bottleneck_dim"]]  # fmt: skip
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def flops_of(config: RunConfig) -> float:
    return flops_per_image(config, build_network(config, meta=True), with_drop_path=True)


def figures(clock: Clock, images: int, flops: float, peak: float) -> dict[str, Any]:
    total_s = statistics.median(sum(spent.values()) for spent in clock.rounds)
    shares = {
        part: statistics.median(spent.get(part, 0.0) / sum(spent.values()) for spent in clock.rounds)
        for part in PARTS
    }
    rate = images / total_s
    return {"images_per_s": rate, "mfu": rate * flops / peak, "step_s": total_s, "shares": shares}


def from_slides(
    name: str, args: argparse.Namespace, device: torch.device, flops: float, peak: float
) -> dict[str, Any]:
    """The trainer's own loop over slides that are drawn for it, by the clock."""
    config, on_gpu = make_config(name, args), device.type == "cuda"
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder:
        slides = write_slides(Path(folder, "slides"), 4 if on_gpu else 2, 8192 if on_gpu else 3072)
        sampler = Sampler(index_slides(str(slides), str(Path(folder, "index"))), config.patches, seed=0)
        trainer = Trainer(config, World(1, device=device), RunLog("benchmark"))
        with PatchStream(sampler, RunLog("benchmark"), num_threads=None if on_gpu else 1) as stream:
            taken = trainer._steps(stream, range(config.train.num_steps), str)
            for _ in range(WARM_UP_STEPS):
                next(taken)
            synchronize(device)
            # Longer than what lies ready when it begins, or decoding would seem to be for nothing.
            began_s, waited_s, steps = time.perf_counter(), 0.0, 0
            while steps < args.rounds or time.perf_counter() - began_s < args.seconds:
                waited_s += next(taken)[0].waited_s
                steps += 1
            synchronize(device)
            total_s = time.perf_counter() - began_s
            taken.close()
    rate = steps * config.train.batch_size / total_s
    return {"images_per_s": rate, "mfu": rate * flops / peak, "data_wait_share": waited_s / total_s,
            "step_s": total_s / steps}  # fmt: skip


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Of this device since the last reset; on a CPU of the whole process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(result: dict[str, Any]) -> None:
    gflop = " · ".join(f"{way} {count:.4g}" for way, count in result["gflop_per_image"].items())
    print(f"\n{result['network']}: {result['images']} images a step; GFLOP an image: {gflop}")
    for way, found in result["ways"].items():
        print(f"  {way:20} {found['images_per_s']:8.4g} images/s   MFU {found['mfu']:.1%}{details(found)}")
    print(f"  ours against plain: {result['ratio']:.2f}×", flush=True)
    if "peer_ratio" in result:
        print(f"  ours against lightly-train: {result['peer_ratio']:.2f}×", flush=True)


def details(found: dict[str, Any]) -> str:
    if "data_wait_share" not in found and "shares" not in found:
        return ""
    if "shares" not in found:
        return f"   data wait {found['data_wait_share']:.1%}, by the clock"
    shares = " · ".join(f"{part} {share:.0%}" for part, share in found["shares"].items())
    return f"   peak {found['memory_gib']:.2f} GiB   {shares}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    is_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--seconds", type=float, default=20.0 if is_gpu else 5.0, help="from slides, at least"
    )
    parser.add_argument("--images", type=int, help="images of a microbatch")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=is_gpu)
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pack", action=argparse.BooleanOptionalAction)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--drop-path", type=float, help="of the third way; 0: leave it out")
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16" if is_gpu else "float32")
    parser.add_argument("--tolerance", type=float, help="of the two losses, relative")
    parser.add_argument("--peer", help="a Python that has lightly-train 0.18")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.network = args.network or (["S/16", "B/16", "L/16", "L/14"] if is_gpu else ["toy"])
    # Sums over prototypes round otherwise: losses differ by 4e-8 for 512, 9e-7 for 16,384, 4e-5 for 65,536.
    exact = 1e-5 if args.network == ["toy"] else 1e-4
    args.tolerance = args.tolerance or (1e-2 if args.precision == "bf16" else exact)
    return args


def main() -> None:
    args = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    peak = measure_matrix_rate(device, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(
        f"{name}, torch {torch.__version__}, {args.precision}, {'compiled' if args.compile else 'eager'}:"
        f" {peak / 1e12:.4g} TFLOP/s of matrix products", flush=True,
    )  # fmt: skip
    results = []
    for network in args.network:
        results.append(run(network, args, device, peak))
        show(results[-1])
        if args.json:
            found = {"device": name, "peak_tflops": peak / 1e12, "results": results}
            args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
