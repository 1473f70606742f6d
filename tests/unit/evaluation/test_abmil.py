"""Gated attention: many runs at once are what each would be alone, and padding changes nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eosin.config.heads import AbmilConfig
from eosin.evaluation.heads.abmil import (
    Parameters,
    SlideBags,
    SlidePart,
    forward,
    initial_parameters,
    seeds_at_once,
    train_abmil,
)

SMALL = AbmilConfig(
    num_epochs=15, batch_size=4, num_runs=4, patience_epochs=None, lr=5e-3,
    projection_dim=12, attention_dim=8, hidden_dims=(10, 6),
)  # fmt: skip


def _bags(sizes: list[int], dim: int, seed: int) -> SlideBags:
    features = torch.randn(sum(sizes), dim, generator=torch.Generator().manual_seed(seed))
    return SlideBags(features, torch.tensor(np.cumsum([0, *sizes])))


class _Reference(nn.Module):
    """One network for one slide, written with torch's own layers."""

    def __init__(self, parameters: Parameters, run: int) -> None:
        super().__init__()
        self._parameters, self._run = parameters, run

    def _layer(self, name: str) -> nn.Linear:
        weight = self._parameters[f"{name}.weight"][self._run]
        layer = nn.Linear(*weight.shape)
        with torch.no_grad():
            layer.weight.copy_(weight.T)
            layer.bias.copy_(self._parameters[f"{name}.bias"][self._run, 0])
        return layer

    def forward(self, patches: Tensor) -> Tensor:
        projected = self._layer("projection")(patches)
        gated = torch.tanh(self._layer("tanh")(projected)) * torch.sigmoid(self._layer("gate")(projected))
        weights = torch.softmax(self._layer("attention")(gated)[:, 0], dim=0)
        hidden = (weights[:, None] * projected).sum(dim=0)
        hidden = torch.relu(self._layer("mlp0")(hidden))
        hidden = torch.relu(self._layer("mlp1")(hidden))
        return self._layer("mlp2")(hidden)


@pytest.mark.parametrize("is_shared", [False, True])
def test_all_runs_and_padded_slides_give_what_one_network_gives_for_one_slide(is_shared: bool) -> None:
    bags = _bags([3, 7, 1], dim=5, seed=1)
    parameters = initial_parameters(5, 3, SMALL, [11, 12])
    order = torch.tensor([[0, 1, 2]]) if is_shared else torch.tensor([[0, 1, 2], [2, 0, 1]])
    with torch.no_grad():
        logits = forward(parameters, *bags.gather(order))
        for run in range(2):
            for place, slide in enumerate(order[0 if is_shared else run].tolist()):
                alone = bags.features[bags.starts[slide] : bags.starts[slide + 1]]
                expected = _Reference(parameters, run)(alone)
                torch.testing.assert_close(logits[run, place], expected, rtol=1e-5, atol=1e-6)


def test_initialisation_is_that_of_a_linear_layer() -> None:
    parameters = initial_parameters(400, 2, SMALL, [5])
    weight = parameters["projection.weight"]
    assert weight.abs().max() <= 1 / math.sqrt(400)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(400) / math.sqrt(3), rel=0.05)
    assert not torch.equal(weight, initial_parameters(400, 2, SMALL, [6])["projection.weight"])


def _problem(seed: int) -> tuple[SlideBags, list[SlidePart]]:
    """Slides of two classes that differ in one patch of each alone."""
    random = torch.Generator().manual_seed(seed)
    sizes = [int(n) for n in torch.randint(3, 9, (60,), generator=random)]
    bags = _bags(sizes, dim=6, seed=seed)
    classes = torch.arange(60) % 2
    for slide in torch.nonzero(classes).flatten().tolist():
        bags.features[bags.starts[slide], :2] += 6
    slides = torch.arange(60)
    return bags, [SlidePart(slides[a:b], classes[a:b]) for a, b in ((0, 32), (32, 44), (44, 60))]


def test_attention_finds_the_one_patch_that_tells() -> None:
    bags, (train, val, judged) = _problem(seed=2)
    longer = SMALL.model_copy(update={"num_epochs": 40, "hidden_dims": (32, 16)})
    trained = train_abmil(bags, train, val, judged, 2, longer, seed=0)
    right = (trained.probabilities.argmax(dim=-1) == judged.classes).float().mean(dim=1)
    assert trained.probabilities.shape == (4, 16, 2)
    assert right.min() > 0.9
    assert len(set(trained.best_score)) >= 1 and len(trained.best_epoch) == 4


def test_how_many_seeds_go_at_once_changes_no_figure() -> None:
    bags, (train, val, judged) = _problem(seed=3)
    together = train_abmil(bags, train, val, judged, 2, SMALL, seed=7)
    tight = SMALL.model_copy(update={"max_step_gib": 1e-9})
    alone = train_abmil(bags, train, val, judged, 2, tight, seed=7)
    assert (together.seeds_at_once, alone.seeds_at_once) == (4, 1)
    torch.testing.assert_close(together.probabilities, alone.probabilities, rtol=1e-3, atol=1e-4)
    assert together.best_epoch == alone.best_epoch


def test_memory_bounds_how_many_seeds_go_at_once() -> None:
    bags = _bags([1000] * 4, dim=384, seed=1)
    config = AbmilConfig()
    width = 384 + 3 * (128 + 256)
    fitting = int(2.0 * 2**30 / (32 * 1000 * width * 4))
    assert seeds_at_once(bags, config) == fitting < 20


def test_patience_stops_runs_that_stay_where_they_are() -> None:
    bags, (train, val, judged) = _problem(seed=4)
    noise = SlidePart(
        val.slides, val.classes[torch.randperm(len(val), generator=torch.Generator().manual_seed(0))]
    )
    patient = SMALL.model_copy(update={"num_epochs": 60, "patience_epochs": 2, "num_runs": 2})
    trained = train_abmil(bags, train, noise, judged, 2, patient, seed=0)
    assert trained.num_epochs < 60
    assert trained.num_epochs >= max(trained.best_epoch) + 3


def test_without_validation_the_last_epoch_is_kept() -> None:
    bags, (train, val, judged) = _problem(seed=5)
    nothing = SlidePart(val.slides[:0], val.classes[:0])
    trained = train_abmil(bags, train, nothing, judged, 2, SMALL, seed=0)
    assert trained.best_score == ()
    assert trained.best_epoch == (SMALL.num_epochs - 1,) * 4
