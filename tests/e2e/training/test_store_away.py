"""Training while the store fails for good, and what a person reads when a worker refuses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.errors import EXIT_USER, TransientError
from eosin.observability import RunLog
from eosin.training.train import train
from tests.support.faults import Fault, FaultProxy, Plan
from tests.support.training_run import begin, tiny_config

REPOSITORY = Path(__file__).resolve().parents[3]
WORKER = "tests.support.training_run"
# Out of memory each restart would go on a little further, which counts as progress.
ELASTIC = {"workers_per_node": 2, "max_restarts_without_progress": 1, "memory_snapshots": "off"}
LAUNCHER = f"""
import sys
from eosin.cli.output import render_error
from eosin.observability import RunLog
from eosin.training.train import train
try:
    train(sys.argv[1], log=RunLog("launch"), worker="{WORKER}")
except Exception as error:
    sys.exit(render_error(error, as_json=False))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("EOSIN_RETRY_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("EOSIN_RETRY_BASE_S", "0.01")


def no_checkpoint_is_taken() -> Plan:
    return lambda method, path: Fault.SLOW_DOWN if method == "PUT" and "/checkpoints/" in path else Fault.NONE


def nothing_is_read_once_launched() -> Plan:
    configs: list[str] = []

    def plan(method: str, path: str) -> Fault:
        if path.endswith("config.yaml"):
            configs.append(path)
        return Fault.SLOW_DOWN if len(configs) > 1 else Fault.NONE

    return plan


@pytest.mark.e2e
@pytest.mark.parametrize("make_plan", [no_checkpoint_is_taken, nothing_is_read_once_launched])
def test_a_store_that_fails_for_good_ends_training_as_transient_with_its_words(
    make_plan: Callable[[], Plan], s3: LocalS3, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_uri = f"{bucket_uri}/runs/away"
    begin(run_uri, tiny_config(checkpoint_every_steps=2, export_every_steps=20, elastic=ELASTIC))
    with FaultProxy(s3.endpoint_url, make_plan()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        with pytest.raises(TransientError) as raised:
            train(run_uri, log=RunLog("test"), worker=WORKER)
    assert f"{proxy.endpoint_url} answered SlowDown" in raised.value.message
    assert run_uri in raised.value.message


@pytest.mark.e2e
def test_a_refusal_is_read_once(tmp_path: Path) -> None:
    run_uri = str(tmp_path / "run")
    missing = str(tmp_path / "nowhere" / "model.safetensors")
    begin(run_uri, tiny_config(elastic=ELASTIC, model={"init": missing}))
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCHER, run_uri], cwd=REPOSITORY, env=dict(os.environ), timeout=120,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == EXIT_USER
    assert ended.stderr.count("nowhere/model.safetensors") == 1, ended.stderr
