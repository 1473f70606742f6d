"""Two launches of one run at the same time: the older stops, the newer trains as if it were alone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eosin.errors import EXIT_TRANSIENT
from eosin.observability import RunLog
from eosin.runs import complete_steps, load_run
from eosin.storage import open_store
from eosin.training.train import train
from tests.support.ranks import Leg, final_parameters, train_legs
from tests.support.training_run import STEP_DELAY_S, begin, tiny_config

REPOSITORY = Path(__file__).resolve().parents[3]
WORKER = "tests.support.training_run"
LAUNCHER = f"""
import sys
from eosin.cli.output import render_error
from eosin.observability import RunLog
from eosin.runs import complete_steps, load_run
from eosin.training.train import train
try:
    train(sys.argv[1], log=RunLog("launch"), worker="{WORKER}")
except Exception as error:
    sys.exit(render_error(error, as_json=False))
"""
NUM_STEPS = 40
# Sums run in another order where shares follow the measured speed: equal to 1e-5, not to the bit.
EVEN = {"workers_per_node": 2, "load_balance": "even"}


@pytest.fixture
def older(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launch of the run, slow enough that it would still train when the newer one has begun."""
    begin(str(tmp_path / "run"), tiny_config(num_steps=NUM_STEPS, checkpoint_every_steps=3,
                                             elastic=EVEN))  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), STEP_DELAY_S: "0.5"}
    with (tmp_path / "older.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(tmp_path / "run")], cwd=REPOSITORY, env=environment,
            stderr=log,
        )  # fmt: skip
    yield process
    process.kill()
    process.wait()


def wait_for_a_checkpoint(run_uri: str) -> None:
    deadline_s = time.monotonic() + 90
    while not complete_steps(open_store(run_uri)):
        assert time.monotonic() < deadline_s, "no checkpoint came"
        time.sleep(0.1)


@pytest.mark.e2e
def test_the_older_world_stops_and_the_newer_ends_as_if_alone(
    older: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_uri = str(tmp_path / "run")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    wait_for_a_checkpoint(run_uri)
    monkeypatch.setenv(STEP_DELAY_S, "0.1")
    assert train(run_uri, log=RunLog("test"), worker=WORKER).num_steps == NUM_STEPS
    assert older.wait(60) == EXIT_TRANSIENT
    said = (tmp_path / "older.log").read_text()
    assert f"{run_uri} is trained by another world now (" in said and ", process " in said
    assert said.count("train  world") == 1, said
    config = tiny_config(num_steps=NUM_STEPS, checkpoint_every_steps=3, elastic=EVEN)
    undisturbed = train_legs(config, tmp_path / "undisturbed", [Leg(2, NUM_STEPS)])
    ended = final_parameters(Path(run_uri), load_run(run_uri), NUM_STEPS)
    assert ended.keys() == undisturbed.keys()
    assert all(torch.equal(ended[name], value) for name, value in undisturbed.items())
