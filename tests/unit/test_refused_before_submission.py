"""What cannot be trained is refused before a JobSet asks for a GPU."""

from pathlib import Path
from typing import Any

import pytest

from eosin import steps
from eosin.errors import UserError
from tests.support.training_run import begin, tiny_config


@pytest.mark.parametrize(
    ("pool", "train", "message"),
    [
        ({"gpu_memory_gib": 0.0005}, {}, r"0\.0 M parameters × 5 float32 copies .* and there are 0\.0 GiB"),
        (
            {"gpu_memory_gib": 0.0005, "min_nodes": 2, "max_nodes": 2},
            {"parallel": "fsdp"},
            r"÷ 2 ranks \+ .* gathered",
        ),
        ({}, {"batch_size": 8}, "batch_size 8 ÷ num_microbatches 8 = 1"),
    ],
)
def test_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    config = tiny_config(**train)
    tree = {**config.model_dump(), "cluster": {"pools": [{"name": "anchor", **pool}]}}
    uri = str(tmp_path / "run")
    begin(uri, type(config).model_validate(tree))
    monkeypatch.setattr("eosin.cluster.launcher.train_on_cluster", lambda *_, **__: pytest.fail("submitted"))
    with pytest.raises(UserError, match=message):
        steps.train(uri, "jobset")


def test_what_fits_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[str] = []
    monkeypatch.setattr("eosin.cluster.launcher.train_on_cluster", lambda uri, **_: submitted.append(uri))
    begin(str(tmp_path / "run"), tiny_config())
    steps.train(str(tmp_path / "run"), "jobset")
    assert submitted == [str(tmp_path / "run")]
