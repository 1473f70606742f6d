"""Linear probes: batched seeds against one seed at a time by torch's own optimizer."""

import pytest
import torch

from eosin.config.heads import ProbeConfig
from eosin.evaluation.heads.linear import Part, Probes, train_probes


def _data(seed: int, count: int, *, dim: int = 12, num_classes: int = 4, spread: float = 1.0) -> Part:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    classes = torch.randint(num_classes, (count,), generator=generator)
    features = centres[classes] + spread * torch.randn(count, dim, generator=generator)
    return Part(features, classes)


def _accuracy(probes: Probes, part: Part) -> torch.Tensor:
    return (probes.probabilities(part.features).argmax(-1) == part.classes).float().mean(dim=1)


def test_all_seeds_together_are_the_same_as_each_alone() -> None:
    """The run of seed s must not feel the others: bitwise equality is not promised, 1e-5 is."""
    train, val = _data(1, 70), _data(2, 40)
    config = ProbeConfig(num_steps=60, batch_size=16, lr=1e-2, num_runs=4)
    together = train_probes(train, val, 4, config, seed=5)
    first_two = train_probes(train, val, 4, config.model_copy(update={"num_runs": 2}), seed=5)
    torch.testing.assert_close(together.weight[:2], first_two.weight, rtol=1e-4, atol=1e-5)
    assert together.best_epoch[:2] == first_two.best_epoch


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_a_run_is_a_linear_layer_trained_by_adamw_on_cross_entropy(weight_decay: float) -> None:
    train = _data(3, 50)
    config = ProbeConfig(
        num_steps=40, batch_size=50, lr=1e-2, low_lr_epochs=0, num_runs=1, weight_decay=weight_decay
    )
    none = Part(train.features[:0], train.classes[:0])
    at_start = config.model_copy(update={"num_steps": 1, "lr": 1e-12, "weight_decay": 0.0})
    start = train_probes(train, none, 4, at_start, seed=0)
    layer = torch.nn.Linear(12, 4)
    with torch.no_grad():
        layer.weight.copy_(start.weight[0].T)
        layer.bias.copy_(start.bias[0])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=weight_decay)
    for _ in range(40):  # one batch is the whole set, so the order of samples does not matter
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(train.features), train.classes).backward()
        optimizer.step()
    ours = train_probes(train, none, 4, config, seed=0)
    torch.testing.assert_close(ours.weight[0].T, layer.weight.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.bias[0], layer.bias.detach(), rtol=1e-3, atol=1e-4)


def test_seeds_differ_and_the_same_seed_repeats() -> None:
    train, val = _data(1, 70), _data(2, 40)
    config = ProbeConfig(num_steps=20, batch_size=16, num_runs=3)
    first, second = (train_probes(train, val, 4, config, seed=7) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert not torch.allclose(first.weight[0], first.weight[1])
    other = train_probes(train, val, 4, config, seed=8)
    assert not torch.allclose(first.weight, other.weight)


def test_it_learns_what_is_there_to_learn_and_nothing_from_noise() -> None:
    config = ProbeConfig(num_steps=400, batch_size=64, lr=1e-2, num_runs=3)
    train, val, test = _data(1, 400, spread=0.5), _data(2, 100, spread=0.5), _data(3, 400, spread=0.5)
    assert _accuracy(train_probes(train, val, 4, config, seed=0), test).min() > 0.9
    noise = [Part(torch.randn_like(part.features), part.classes) for part in (train, val, test)]
    assert _accuracy(train_probes(noise[0], noise[1], 4, config, seed=0), noise[2]).max() < 0.4


def test_the_best_validation_epoch_is_kept_not_the_last() -> None:
    """Validation labels are wrong on purpose: the longer it learns, the worse it scores there."""
    train = _data(1, 200, spread=0.3)
    val = Part(train.features, (train.classes + 1) % 4)
    config = ProbeConfig(num_steps=300, batch_size=50, lr=1e-2, num_runs=5)
    probes = train_probes(train, val, 4, config, seed=1)
    assert max(probes.best_epoch) < 10
    assert probes.num_epochs == 75
    assert _accuracy(probes, val).mean() > 0.02


def test_patience_ends_it_early() -> None:
    train = _data(1, 200, spread=0.3)
    val = Part(train.features, (train.classes + 1) % 4)
    config = ProbeConfig(num_steps=10_000, batch_size=50, lr=1e-2, num_runs=3, patience_epochs=6)
    probes = train_probes(train, val, 4, config, seed=1)
    assert probes.num_epochs == max(probes.best_epoch) + 6 + 1


def test_steps_that_end_within_an_epoch_are_still_validated() -> None:
    probes = train_probes(
        _data(1, 100), _data(2, 30), 4, ProbeConfig(num_steps=2, batch_size=10, num_runs=2), seed=0
    )
    assert probes.num_epochs == 1
    assert all(score >= 0 for score in probes.best_score)


def test_fewer_samples_than_seeds_or_batch() -> None:
    train = Part(torch.eye(12)[:2], torch.tensor([0, 1]))
    config = ProbeConfig(num_steps=300, batch_size=256, lr=1e-2, num_runs=5)
    probes = train_probes(train, train, 2, config, seed=0)
    assert _accuracy(probes, train).tolist() == [1.0] * 5


def test_each_run_learns_from_its_own_shots_alone() -> None:
    """Features name their sample, so a weight that moved tells which samples a run has seen."""
    count, num_classes = 40, 4
    train = Part(torch.eye(count), torch.arange(count) % num_classes)
    none = Part(train.features[:0], train.classes[:0])
    shots = ProbeConfig(num_steps=30, batch_size=8, lr=1e-2, num_runs=6, num_shots=3, weight_decay=0.0)
    untouched = train_probes(train, none, num_classes, shots.model_copy(update={"lr": 1e-12}), seed=2)
    trained = train_probes(train, none, num_classes, shots, seed=2)
    moved = (trained.weight - untouched.weight).abs().sum(dim=-1) > 1e-4
    assert moved.sum(dim=1).tolist() == [12] * 6
    for run in moved:
        seen = torch.nonzero(run).flatten() % num_classes
        assert seen.bincount(minlength=num_classes).tolist() == [3] * num_classes
    assert len({tuple(run.tolist()) for run in moved}) > 1, "draws differ from run to run"


def test_more_shots_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="shots are wanted"):
        train_probes(_data(1, 20), _data(2, 10), 4, ProbeConfig(num_steps=1, num_shots=15), seed=0)


def test_fewer_looks_at_validation_and_the_last_epoch_among_them() -> None:
    train, val = _data(1, 100), _data(2, 30)
    config = ProbeConfig(num_steps=23, batch_size=50, num_runs=3, validate_every_epochs=5, lr=1e-2)
    probes = train_probes(train, val, 4, config, seed=0)
    assert probes.num_epochs == 12
    # Two steps an epoch: looks after epochs 4 and 9, and at the last step, within epoch 11.
    assert set(probes.best_epoch) <= {4, 9, 11}
    every = train_probes(train, val, 4, config.model_copy(update={"validate_every_epochs": 1}), seed=0)
    assert all(often >= seldom for often, seldom in zip(every.best_score, probes.best_score, strict=True))
