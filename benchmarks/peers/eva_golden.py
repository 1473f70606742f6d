"""Golden values of kaiko-eva: its heads, trained by its own trainer, and its Dice, on small made data.

In an environment with kaiko-eva[vision] 0.4.5 (the package never needs it):

    python benchmarks/peers/eva_golden.py tests/data/golden/eva-0.4.5.safetensors

Kept of each head: features, classes, initial weights, the order in which its loader gave the samples, and
what its best checkpoint predicts on validation. Our heads must come to the same from the same.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def _stand_in_for_torchvision_ops() -> None:
    """torchvision built for another torch lacks its compiled operators, which eva imports and never calls."""
    import subprocess

    if not subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []


def main(target: Path) -> None:
    """Write every golden value to `target`."""
    import safetensors.torch

    _stand_in_for_torchvision_ops()
    torch.use_deterministic_algorithms(True)
    values = {**linear(4, "multi"), **linear(2, "binary"), **abmil(3, "multi"), **abmil(2, "binary")}
    values |= dice()
    values |= decoder() | segmentation("ConvDecoderMS") | segmentation("ConvDecoderWithImage") | outlines()
    about = {"made_by": "benchmarks/peers/eva_golden.py", "kaiko-eva": version("kaiko-eva"),
             "torch": torch.__version__, "lightning": version("lightning")}  # fmt: skip
    safetensors.torch.save_file({name: each.contiguous() for name, each in values.items()}, target, about)
    print(target, len(values), about)


def linear(num_classes: int, name: str) -> dict[str, torch.Tensor]:
    """A linear head over 9 epochs of 5 steps, and 3 steps of a tenth that is never validated."""
    generator = torch.Generator().manual_seed(num_classes)
    centres = torch.randn(num_classes, 24, generator=generator)
    data = {}
    for part, size in (("train", 300), ("val", 130)):
        classes = torch.randint(0, num_classes, (size,), generator=generator)
        data[part] = centres[classes] + 2.0 * torch.randn(size, 24, generator=generator), classes
    outputs = 1 if num_classes == 2 else num_classes
    head = torch.nn.Linear(24, outputs)
    with torch.no_grad():
        bound = 24**-0.5
        head.weight.copy_((torch.rand(outputs, 24, generator=generator) * 2 - 1) * bound)
        head.bias.copy_((torch.rand(outputs, generator=generator) * 2 - 1) * bound)
    found = train(head, data, num_classes, lr=3e-3, batch_size=64, max_steps=48)
    start = {"weight": found["initial"]["weight"], "bias": found["initial"]["bias"]}
    return _named(f"linear.{name}", data, start, found)


def abmil(num_classes: int, name: str) -> dict[str, torch.Tensor]:
    """Gated attention over bags of 3 to 8 patches, filled up with −inf, 7 epochs of 3 steps."""
    from eva.vision.models.networks import ABMIL

    generator = torch.Generator().manual_seed(10 + num_classes)
    centres = torch.randn(num_classes, 12, generator=generator)
    data = {}
    for part, size in (("train", 24), ("val", 15)):
        classes = torch.randint(0, num_classes, (size,), generator=generator)
        bags = centres[classes].unsqueeze(1) + 3.0 * torch.randn(size, 8, 12, generator=generator)
        sizes = torch.randint(3, 9, (size,), generator=generator)
        bags[torch.arange(8) >= sizes.unsqueeze(1)] = float("-inf")
        data[part] = bags, classes
    torch.manual_seed(3)
    head = ABMIL(
        12, 1 if num_classes == 2 else num_classes, 16, hidden_size_attention=10, hidden_sizes_mlp=(9, 7)
    )
    found = train(head, data, num_classes, lr=1e-3, batch_size=8, max_steps=21)
    return _named(f"abmil.{name}", data, found["initial"], found)


def train(
    head: torch.nn.Module,
    data: dict[str, Any],
    num_classes: int,
    *,
    lr: float,
    batch_size: int,
    max_steps: int,
) -> dict[str, Any]:
    """eva's HeadModule under eva's Trainer with the callbacks of its configurations."""
    from eva.core.metrics import AverageLoss
    from eva.core.metrics.defaults import BinaryClassificationMetrics, MulticlassClassificationMetrics
    from eva.core.metrics.structs import MetricsSchema
    from eva.core.models.modules import HeadModule
    from eva.core.trainers import Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    is_binary = num_classes == 2
    metrics = BinaryClassificationMetrics() if is_binary else MulticlassClassificationMetrics(num_classes)
    monitor = f"val/{'BinaryBalancedAccuracy' if is_binary else 'MulticlassAccuracy'}"
    criterion = torch.nn.BCEWithLogitsLoss() if is_binary else torch.nn.CrossEntropyLoss()
    initial = {name: value.detach().clone() for name, value in head.state_dict().items()}
    model = HeadModule(
        head=head, criterion=criterion, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr),
        metrics=MetricsSchema(common=[AverageLoss(), metrics]),
    )  # fmt: skip
    parts = {part: TensorDataset(*_as_eva(each, is_binary)) for part, each in data.items()}
    sampler = Recorded(len(parts["train"]))
    loader = DataLoader(parts["train"], batch_size=batch_size, sampler=sampler)
    val = DataLoader(parts["val"], batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(dirpath=folder, filename="best", save_top_k=1, monitor=monitor, mode="max")
        patience = EarlyStopping(monitor=monitor, mode="max", min_delta=0, patience=1250)
        trainer = Trainer(
            default_root_dir=folder, max_steps=max_steps, callbacks=[best, patience], accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(model, loader, val)
        state = torch.load(best.best_model_path, weights_only=False)
        kept = {name.removeprefix("head."): value for name, value in state["state_dict"].items()}
        head.load_state_dict(kept)
    with torch.no_grad():
        logits = head(data["val"][0]).squeeze(-1)
    probabilities = logits.sigmoid() if is_binary else logits.softmax(dim=-1)
    return {"initial": initial, "orders": torch.stack(sampler.orders), "best": torch.tensor(state["epoch"]),
            "probabilities": probabilities}  # fmt: skip


class Recorded(torch.utils.data.Sampler):  # type: ignore[type-arg]  # generic in newer torch only
    """A shuffled order an epoch, which is kept."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.orders: list[torch.Tensor] = []
        self._generator = torch.Generator().manual_seed(7)

    def __iter__(self) -> Any:
        order = torch.randperm(self.size, generator=self._generator)
        self.orders.append(order)
        return iter(order.tolist())

    def __len__(self) -> int:
        return self.size


def dice() -> dict[str, torch.Tensor]:
    """eva's Dice (MonaiDiceScore as its configurations set it) of predicted against true masks."""
    from eva.vision.losses import DiceLoss
    from eva.vision.metrics import MonaiDiceScore

    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(0, 5, (6, 16, 16), generator=generator)
    truth[truth == 4] = torch.where(torch.arange(6)[:, None, None].expand(6, 16, 16)[truth == 4] < 2, 4, 0)
    predicted = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6,
        truth,
        torch.randint(0, 5, truth.shape, generator=generator),
    )
    metric = MonaiDiceScore(num_classes=5, include_background=False, ignore_empty=True)
    for rows in (slice(0, 4), slice(4, 6)):
        metric.update(predicted[rows], truth[rows])
    ignoring = MonaiDiceScore(num_classes=6, include_background=False, ignore_index=5, ignore_empty=True)
    marked = truth.clone()
    marked[:, :3] = 5
    ignoring.update(predicted, marked)
    logits = torch.randn(6, 5, 16, 16, generator=generator)
    loss = DiceLoss(softmax=True, batch=True)(logits, truth)
    masked = DiceLoss(softmax=True, batch=True, ignore_index=5)(logits, marked)
    return {"dice.truth": truth, "dice.predicted": predicted, "dice.score": metric.compute().reshape(()),
            "dice.marked": marked, "dice.ignoring": ignoring.compute().reshape(()), "dice.logits": logits,
            "dice.loss": loss, "dice.masked_loss": masked}  # fmt: skip


def decoder() -> dict[str, torch.Tensor]:
    """ConvDecoderMS and ConvDecoderWithImage of given weights on given tokens, and images of 32 px."""
    from eva.vision.models.networks.decoders import segmentation
    from eva.vision.models.networks.decoders.segmentation.typings import DecoderInputs

    found: dict[str, torch.Tensor] = {}
    for name in ("ConvDecoderMS", "ConvDecoderWithImage"):
        torch.manual_seed(11)
        network = getattr(segmentation, name)(in_features=12, num_classes=3)
        tokens, images = (
            torch.randn(4, 12, 4, 4),
            torch.randn(4, 3, 8, 8) if "Image" in name else torch.randn(4, 3, 32, 32),
        )
        size = tuple(images.shape[-2:])
        with torch.no_grad():
            found[f"{name}.logits"] = network(DecoderInputs([tokens], size, images))
        found |= {f"{name}.tokens": tokens, f"{name}.images": images}
        found |= {f"{name}.weights.{key}": value.clone() for key, value in network.state_dict().items()
                  if value.dtype.is_floating_point}  # fmt: skip
    return found


def segmentation(name: str) -> dict[str, torch.Tensor]:
    """A decoder on tokens of a frozen encoder, 8 epochs of 3 steps and one more, as CoNSeP is trained.

    With batch norm in double precision: a bias before it has no gradient but rounding, of which AdamW makes
    whole steps in single precision, so there two programs that do the same part by thousandths.
    """
    from eva.core.metrics import AverageLoss
    from eva.core.metrics.structs import MetricsSchema
    from eva.core.models.transforms import AsDiscrete
    from eva.core.trainers import Trainer
    from eva.vision.losses import DiceLoss
    from eva.vision.metrics.defaults import MulticlassSegmentationMetrics
    from eva.vision.models.modules import SemanticSegmentationModule
    from eva.vision.models.networks.decoders import segmentation as decoders
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    is_double = name == "ConvDecoderWithImage"
    dtype = torch.float64 if is_double else torch.float32
    generator = torch.Generator().manual_seed(21)
    data = {}
    for part, size in (("train", 11), ("val", 6)):
        images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        # Bright squares are class 1, dark ones class 2.
        truth = torch.zeros(size, 32, 32, dtype=torch.int64)
        for i in range(size):
            for label, (low, high) in ((1, (180, 256)), (2, (0, 70))):
                y, x = torch.randint(0, 20, (2,), generator=generator).tolist()
                shape = (3, 12, 12)
                square = torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)
                images[i, :, y : y + 12, x : x + 12], truth[i, y : y + 12, x : x + 12] = square, label
        data[part] = images, truth
    torch.manual_seed(5)
    encoder = Encoder()
    network = getattr(decoders, name)(in_features=12, num_classes=3)
    initial = {key: value.detach().clone() for key, value in network.state_dict().items()}
    model = SemanticSegmentationModule(
        decoder=network, encoder=encoder, criterion=DiceLoss(softmax=True, batch=True),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        metrics=MetricsSchema(
            common=[AverageLoss()], evaluation=[MulticlassSegmentationMetrics(num_classes=3)]
        ),
        postprocess=_postprocess([AsDiscrete(argmax=True, keepdim=False)]),
    )  # fmt: skip
    parts = {part: TensorDataset(images.to(dtype) / 255, truth) for part, (images, truth) in data.items()}
    sampler = Recorded(len(parts["train"]))
    loader = DataLoader(parts["train"], batch_size=4, sampler=sampler)
    monitor = "val/MonaiDiceScore"
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(dirpath=folder, filename="best", save_top_k=1, monitor=monitor, mode="max")
        trainer = Trainer(
            default_root_dir=folder, max_steps=25, callbacks=[best], accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            log_every_n_steps=1, precision="64-true" if is_double else "32-true",
        )  # fmt: skip
        trainer.fit(model, loader, DataLoader(parts["val"], batch_size=4))
        state = torch.load(best.best_model_path, weights_only=False)
        network.load_state_dict({k.removeprefix("decoder."): v for k, v in state["state_dict"].items()})
    with torch.no_grad():
        tokens = {part: encoder.to(dtype)(images.to(dtype) / 255)[0] for part, (images, _) in data.items()}
        inputs = decoders.typings.DecoderInputs([tokens["val"]], (32, 32), data["val"][0].to(dtype) / 255)
        logits = network.to(dtype).eval()(inputs)
    prefix = f"trained.{name}"
    found = {f"{prefix}.initial.{key}": value for key, value in initial.items() if value.ndim}
    for part, (images, truth) in data.items():
        found |= {f"{prefix}.{part}.images": images, f"{prefix}.{part}.truth": truth.to(torch.uint8),
                  f"{prefix}.{part}.tokens": tokens[part]}  # fmt: skip
    score = state["callbacks"][next(k for k in state["callbacks"] if "ModelCheckpoint" in k)][
        "best_model_score"
    ]
    return found | {f"{prefix}.orders": torch.stack(sampler.orders), f"{prefix}.logits": logits,
                    f"{prefix}.step": torch.tensor(state["global_step"]),
                    f"{prefix}.score": score.reshape(())}  # fmt: skip


class Encoder(torch.nn.Module):
    """Patches of 8 px to 12 features, never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 12, 8, stride=8)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps [N, 12, h, w] of images [N, 3, H, W], as eva's backbones give them."""
        return [self.patches(images)]


def _postprocess(transforms: list[Any]) -> Any:
    from eva.core.models.modules.utils.batch_postprocess import BatchPostProcess

    return BatchPostProcess(predictions_transforms=transforms)


def outlines() -> dict[str, torch.Tensor]:
    """Masks as eva's MoNuSAC fills them, of outlines with whole, half and any coordinates."""
    import numpy as np
    from skimage import draw

    random = np.random.default_rng(9)
    found: dict[str, torch.Tensor] = {}
    for i in range(12):
        vertices = random.uniform(-3, 27, (int(random.integers(3, 9)), 2))
        vertices = [vertices, np.round(vertices), np.round(vertices * 2) / 2][i % 3]
        mask = np.zeros((22, 24), np.uint8)
        columns, rows = draw.polygon(vertices[:, 1], vertices[:, 0], mask.shape)
        mask[columns, rows] = 1
        found |= {
            f"outline.{i}.vertices": torch.from_numpy(vertices),
            f"outline.{i}.mask": torch.from_numpy(mask),
        }
    return found


def _as_eva(part: tuple[torch.Tensor, torch.Tensor], is_binary: bool) -> tuple[torch.Tensor, torch.Tensor]:
    features, classes = part
    return features, classes.float() if is_binary else classes


def _named(
    name: str, data: dict[str, Any], initial: dict[str, torch.Tensor], found: dict[str, Any]
) -> dict[str, torch.Tensor]:
    values = {f"{name}.{part}.{what}": each for part, pair in data.items()
              for what, each in zip(("features", "classes"), pair, strict=True)}  # fmt: skip
    values |= {f"{name}.initial.{key}": value for key, value in initial.items()}
    return values | {f"{name}.{key}": found[key] for key in ("orders", "best", "probabilities")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
