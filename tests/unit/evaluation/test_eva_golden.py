"""kaiko-eva's own heads and Dice, value for value: same features, weights and order, same predictions.

Golden values: benchmarks/peers/eva_golden.py, run with kaiko-eva 0.4.5.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from eosin.config.heads import AbmilConfig, DecoderConfig, ProbeConfig
from eosin.evaluation.datasets.masks import IGNORE, MaskCoding
from eosin.evaluation.datasets.public.masked import Outlines, paint
from eosin.evaluation.embeddings.tokens import TileTokens
from eosin.evaluation.heads.abmil import AbmilDraws, SlideBags, SlidePart, train_abmil
from eosin.evaluation.heads.decoder import (
    DecoderDraws,
    EvaDecoder,
    SplitTiles,
    eva_dice_loss,
    mean_tile_dice,
    train_decoder,
)
from eosin.evaluation.heads.linear import Part, train_probes

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "eva-0.4.5.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture
def in_precision() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets torch's default type of floats for the rest of a test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


class GoldenDraws:
    """The weights eva began with, and the orders its loader gave."""

    def __init__(self, weight: Tensor, bias: Tensor, orders: Tensor) -> None:
        self._weight, self._bias, self._orders = weight, bias, iter(orders)

    def initial(self, dim: int, num_outputs: int) -> tuple[Tensor, Tensor]:
        assert self._weight.shape == (num_outputs, dim)
        return self._weight.T.unsqueeze(0).clone(), self._bias.unsqueeze(0).clone()

    def epoch_order(self) -> Tensor:
        return next(self._orders).unsqueeze(0)


def _classes(golden: dict[str, Tensor], name: str, part: str) -> Tensor:
    return golden[f"{name}.{part}.classes"].long()


@pytest.mark.parametrize(("kind", "num_classes"), [("multi", 4), ("binary", 2)])
def test_a_linear_probe_predicts_what_evas_does(
    golden: dict[str, Tensor], kind: str, num_classes: int
) -> None:
    name = f"linear.{kind}"
    parts = [
        Part(golden[f"{name}.{part}.features"], _classes(golden, name, part)) for part in ("train", "val")
    ]
    draws = GoldenDraws(
        golden[f"{name}.initial.weight"], golden[f"{name}.initial.bias"], golden[f"{name}.orders"]
    )
    config = ProbeConfig(num_steps=48, batch_size=64, lr=3e-3, num_runs=1)
    probes = train_probes(*parts, num_classes, config, seed=0, draws=draws)
    assert probes.best_epoch == (int(golden[f"{name}.best"]),)
    found, wanted = probes.probabilities(parts[1].features)[0], golden[f"{name}.probabilities"]
    torch.testing.assert_close(found[:, 1] if kind == "binary" else found, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("kind", "num_classes"), [("multi", 3), ("binary", 2)])
def test_attention_over_patches_predicts_what_evas_does(
    golden: dict[str, Tensor], kind: str, num_classes: int
) -> None:
    name = f"abmil.{kind}"
    bags, parts, start = [], [], 0
    for part in ("train", "val"):
        padded = golden[f"{name}.{part}.features"]
        bags += [bag[torch.isfinite(bag).all(dim=-1)] for bag in padded]
        parts.append(SlidePart(torch.arange(start, start + len(padded)), _classes(golden, name, part)))
        start += len(padded)
    starts = torch.tensor([0, *(len(bag) for bag in bags)]).cumsum(0)
    draws = AbmilDraws(_parameters(golden, f"{name}.initial."), golden[f"{name}.orders"])
    config = AbmilConfig(
        num_epochs=7, batch_size=8, num_runs=1, patience_epochs=None, projection_dim=16, attention_dim=10,
        hidden_dims=(9, 7),
    )  # fmt: skip
    trained = train_abmil(
        SlideBags(torch.cat(bags), starts),
        parts[0],
        parts[1],
        parts[1],
        num_classes,
        config,
        seed=0,
        draws=draws,
    )
    assert trained.best_epoch == (int(golden[f"{name}.best"]),)
    found, wanted = trained.probabilities[0], golden[f"{name}.probabilities"]
    torch.testing.assert_close(found[:, 1] if kind == "binary" else found, wanted, atol=2e-6, rtol=0)


def _parameters(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """eva's state under our names, [1, in, out] and [1, 1, out]."""
    layers = {
        "projection": "projector.0", "tanh": "gated_attention.attention_a.0",
        "gate": "gated_attention.attention_b.0", "attention": "gated_attention.attention_c",
    }  # fmt: skip
    state = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    linear = sorted({key.rpartition(".")[0] for key in state if key.startswith("classifier.")})
    layers |= {f"mlp{i}": name for i, name in enumerate(linear)}
    return {
        f"{ours}.{what}": (
            state[f"{theirs}.{what}"].T if what == "weight" else state[f"{theirs}.{what}"][None]
        )[None].clone()
        for ours, theirs in layers.items()
        for what in ("weight", "bias")
    }


@pytest.mark.parametrize("name", ["ConvDecoderMS", "ConvDecoderWithImage"])
def test_evas_decoders_give_what_they_give_in_eva(golden: dict[str, Tensor], name: str) -> None:
    decoder = EvaDecoder(12, 3, with_image="Image" in name).train()
    prefix = f"{name}.weights."
    state = {
        key.removeprefix(prefix).removeprefix("_"): golden[key] for key in golden if key.startswith(prefix)
    }
    # The golden logits were taken in training mode: batch norm begins with no past.
    fresh = {key: value for key, value in state.items() if "running" not in key}
    assert not decoder.load_state_dict(fresh, strict=False).unexpected_keys
    images = golden[f"{name}.images"]
    with torch.no_grad():
        logits = decoder(golden[f"{name}.tokens"], images, images.shape[-1])
    torch.testing.assert_close(logits, golden[f"{name}.logits"], atol=2e-6, rtol=0)
    if "Image" in name:
        layer = decoder.get_submodule("image_block.0.1")
        assert torch.allclose(layer.running_mean, state["image_block.0.1.running_mean"], atol=1e-6)


def test_dice_and_its_loss_are_evas(golden: dict[str, Tensor]) -> None:
    truth, predicted = (golden[f"dice.{part}"].numpy().astype("uint8") for part in ("truth", "predicted"))
    assert mean_tile_dice(truth, predicted, (1, 2, 3, 4)) == pytest.approx(
        float(golden["dice.score"]), abs=1e-6
    )
    logits = golden["dice.logits"]
    loss = eva_dice_loss(logits, torch.from_numpy(truth))
    assert float(loss) == pytest.approx(float(golden["dice.loss"]), abs=1e-6)
    marked = golden["dice.marked"].numpy().astype("uint8")
    marked[marked == 5] = IGNORE
    masked = eva_dice_loss(logits, torch.from_numpy(marked))
    assert float(masked) == pytest.approx(float(golden["dice.masked_loss"]), abs=1e-6)


@pytest.mark.parametrize("name", ["ConvDecoderMS", "ConvDecoderWithImage"])
def test_a_trained_decoder_predicts_what_evas_does(
    golden: dict[str, Tensor], name: str, in_precision: Callable[[torch.dtype], None]
) -> None:
    prefix = f"trained.{name}"
    # Double where batch norm follows a bias: the script that made the values says why.
    dtype = golden[f"{prefix}.logits"].dtype
    in_precision(dtype)

    def part(split: str) -> SplitTiles:
        images = golden[f"{prefix}.{split}.images"].permute(0, 2, 3, 1).numpy()
        found = TileTokens(
            golden[f"{prefix}.{split}.tokens"].numpy(), golden[f"{prefix}.{split}.truth"].numpy(), (),
            MaskCoding(3, is_binary=False), len(images), 0, (), images,
        )  # fmt: skip
        return SplitTiles(found, np.arange(len(images)))

    initial = {
        key.removeprefix(f"{prefix}.initial.").removeprefix("_"): value
        for key, value in golden.items()
        if key.startswith(f"{prefix}.initial.")
    }
    initial |= {
        f"{key.rpartition('.')[0]}.num_batches_tracked": torch.tensor(0)
        for key in initial
        if "running_mean" in key
    }
    config = DecoderConfig(
        name="eva-with-image" if "Image" in name else "eva-multi-stage",
        num_steps=25,
        batch_size=4,
        num_runs=1,
        low_lr_epochs=5,
    )
    draws = DecoderDraws(initial, golden[f"{prefix}.orders"].numpy())
    train, val = part("train"), part("val")
    trained = train_decoder(train, val, 3, config, (1, 2), seed=0, draws=draws)
    assert trained.best_step == int(golden[f"{prefix}.step"])
    assert trained.best_score == pytest.approx(float(golden[f"{prefix}.score"]), abs=1e-6)
    tokens, images = golden[f"{prefix}.val.tokens"], golden[f"{prefix}.val.images"].to(dtype) / 255
    with torch.no_grad():
        logits = trained.decoder.eval()(tokens, images, 32)
    atol = 1e-8 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(logits, golden[f"{prefix}.logits"], atol=atol, rtol=0)
    predicted = golden[f"{prefix}.logits"].argmax(dim=1).numpy()
    assert (trained.predict(val) == predicted).all()


@pytest.mark.parametrize("number", range(12))
def test_outlines_are_filled_as_eva_fills_them(golden: dict[str, Tensor], number: int) -> None:
    mask = golden[f"outline.{number}.mask"].numpy()
    layer = Outlines("epithelial", (golden[f"outline.{number}.vertices"].numpy(),))
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*mask.shape, 3), dtype=np.uint8)).save(buffer, "PNG")
    assert np.array_equal(paint([layer], buffer.getvalue(), lambda label: 1), mask)
