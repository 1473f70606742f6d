"""Agreement and retrieval under changes, with models of known behaviour."""

import numpy as np
import pytest

from eosin.metrics import embeddings
from eosin.metrics.embeddings import agreement, retrieval


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_what_does_not_move_agrees_fully_and_is_found() -> None:
    x = _normal(0, 50, 8) + 10
    assert agreement(x, x) == pytest.approx(1.0)
    assert retrieval(x, x) == 1.0


def test_unrelated_embeddings_neither_agree_nor_are_found() -> None:
    x, y = _normal(0, 400, 64), _normal(1, 400, 64)
    assert abs(agreement(x, y)) < 0.02
    assert retrieval(x, y) < 0.02


def test_a_collapsed_model_is_not_robust() -> None:
    same = np.tile(_normal(2, 1, 16).astype(np.float32), (30, 1))
    noise = same + 1e-9 * _normal(3, 30, 16)
    assert agreement(same, noise) == pytest.approx(0.0, abs=1e-6)
    assert retrieval(same, noise) == 0.0


def test_small_moves_are_found_and_large_ones_are_not() -> None:
    x = _normal(0, 200, 32)
    scores = [retrieval(x, x + size * _normal(1, 200, 32)) for size in (0.1, 1.0, 3.0, 30.0)]
    assert scores[0] == 1.0
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _normal(0, 101, 6)
    y = x + _normal(1, 101, 6)
    whole = retrieval(x, y)
    monkeypatch.setattr(embeddings, "_BLOCK", 10)
    assert retrieval(x, y) == whole


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((1, 3), (1, 3)), ((4, 3), (4, 2))])
def test_what_cannot_be_compared_is_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"embeddings|sample"):
        retrieval(_normal(0, *shapes[0]), _normal(1, *shapes[1]))
