"""The end of a world: nobody waits for nobody, and who finds the rendezvous closed finds out why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

from eosin.config import RunConfig, dump_config, load_config
from eosin.errors import EXIT_TRANSIENT
from eosin.layout import RunLayout
from eosin.records import TrainingDone
from eosin.storage import Store, open_store
from eosin.training import agent
from eosin.training.elastic.failures import FAILURES_DIR
from eosin.training.elastic.late import part_when_done

CONFIG: RunConfig = load_config("", overrides=["slides.uri=/slides", "train.num_steps=31"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = open_store(str(tmp_path / "run"))
    store.put(RunLayout.CONFIG, dump_config(CONFIG).encode())
    folder = tmp_path / "failures"
    folder.mkdir()
    monkeypatch.setenv(FAILURES_DIR, str(folder))
    monkeypatch.setattr(agent, "begin_zygote", lambda: None)
    return store


def _agent_meets(error: Exception, run: Store, monkeypatch: pytest.MonkeyPatch) -> int:
    def meet(*_: object) -> int:
        raise error

    monkeypatch.setattr(agent, "_torchrun", meet)
    return agent.main(["--nnodes=1:4", "-m", "eosin.training.worker", run.uri])


def _end(run: Store, digest: str) -> None:
    done = TrainingDone(num_steps=31, models=(), snapshot_id="s", config_digest=digest)
    run.put(RunLayout.TRAINING_DONE, done.to_json())


def test_after_the_end_it_ends_as_the_others_did(
    run: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _end(run, CONFIG.digest())
    assert _agent_meets(RendezvousClosedError(), run, monkeypatch) == 0
    assert "has ended" in capfd.readouterr().err


@pytest.mark.parametrize("of_another", [False, True])
def test_before_the_end_it_is_to_be_tried_again(
    run: Store, of_another: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if of_another:
        _end(run, "of-another-config")
    assert _agent_meets(RendezvousClosedError(), run, monkeypatch) == EXIT_TRANSIENT
    assert "before training ended" in capfd.readouterr().err


def test_where_no_run_is_the_reason_is_said(
    run: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run.delete([RunLayout.CONFIG])
    assert _agent_meets(RendezvousClosedError(), run, monkeypatch) == EXIT_TRANSIENT
    assert "no run at" in capfd.readouterr().err


def test_a_rendezvous_that_is_lost_is_no_closed_one(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _end(run, CONFIG.digest())
    with pytest.raises(RendezvousConnectionError):
        _agent_meets(RendezvousConnectionError(), run, monkeypatch)


@pytest.mark.timeout(60)
def test_an_agent_whose_workers_are_done_does_not_wait_for_one_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    barrier: Any = SimpleElasticAgent._exit_barrier
    monkeypatch.setattr(SimpleElasticAgent, "_exit_barrier", barrier)  # so that it is put back
    part_when_done()
    group = SimpleNamespace(state="SUCCEEDED", group_world_size=2)
    agent_of_two: Any = SimpleNamespace(_store=HashStore(), _worker_group=group, _exit_barrier_timeout=3600)
    leave: Any = SimpleElasticAgent._exit_barrier
    leave(agent_of_two)
