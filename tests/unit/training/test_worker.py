"""How a worker ends: its exit code, what it leaves for the agent, and what it says."""

from pathlib import Path

import pytest
import torch.distributed as dist

from eosin.training import worker
from eosin.training.elastic.reports import FAILURES_DIR, read_failures

CLOSED = (
    "[/build/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.1.2.3]:55174."
    "\nException raised from somewhere"
)


@pytest.fixture(autouse=True)
def in_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(worker, "_set_up_process", lambda: None)


@pytest.mark.parametrize(
    "error", [RuntimeError(CLOSED), dist.DistBackendError("NCCL error: remote process exited")]
)
def test_a_lost_peer_is_one_line_and_a_crash_to_the_agent(
    error: Exception, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise error

    assert worker.guarded(run) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith("worker: rank 2 has lost another: ")
    assert "Traceback" not in said and "raised from" not in said
    (failure,) = read_failures(tmp_path)
    assert failure.kind == "crash" and not failure.fatal and "Traceback" in failure.trace


@pytest.mark.parametrize("error", [RuntimeError("shape '[3]' is invalid"), ValueError("gloo/transport")])
def test_a_defect_is_not_taken_for_one(error: Exception) -> None:
    def run() -> None:
        raise error

    with pytest.raises(type(error)):
        worker.guarded(run)
