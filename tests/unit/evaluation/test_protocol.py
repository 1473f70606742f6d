"""A protocol is called eva's only where it is."""

from typing import Any

import pytest

from eosin.config.heads import ProbeConfig
from eosin.evaluation.tasks.linear_probe import LinearProbeTask


def _probe(**fields: Any) -> LinearProbeTask:
    return LinearProbeTask(kind="linear-probe", name="crc", dataset="s3://d/crc", probe=ProbeConfig(**fields))


@pytest.mark.parametrize("fields", [{}, {"patience_epochs": 7}, {"num_shots": 10, "num_runs": 50}])
def test_evas_protocol_keeps_its_name(fields: dict[str, Any]) -> None:
    protocol = _probe(**fields).protocol()
    assert (protocol.name, protocol.changes) == ("linear-probe-eva", ())
    assert fields.items() <= protocol.hyperparameters.items()


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"num_steps": 150}, "num_steps 150 (eva: 12500)"),
        ({"lr": 1e-2}, "lr 0.01 (eva: 0.0003)"),
        ({"weight_decay": 0}, "weight_decay 0.0 (eva: 0.01)"),
        ({"num_runs": 50}, "num_runs 50 (eva: 5)"),
        ({"num_shots": 10}, "num_runs 5 (eva: 50)"),
        ({"num_shots": 5, "num_runs": 50}, "num_shots 5 (eva: all, or 10)"),
    ],
)
def test_any_change_takes_the_name_away_and_is_told(fields: dict[str, Any], change: str) -> None:
    protocol = _probe(**fields).protocol()
    assert protocol.name == "linear-probe"
    assert protocol.changes == (change,)
