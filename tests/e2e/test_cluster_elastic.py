"""The pods of a rendered JobSet as processes: their very commands, environment and exit codes."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eosin.config import RunConfig
from eosin.layout import RunLayout
from eosin.records import TrainingDone
from eosin.storage import open_store
from tests.support.hosts import Host
from tests.support.pods import Pods, checkpoints, elastic_config
from tests.support.training_run import POISONED_STEP, STEP_DELAY_S, begin

pytestmark = pytest.mark.e2e

ANCHOR, SPOT = Host("127.0.0.2", "lo"), Host("127.0.0.3", "lo")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def start_nodes(tmp_path: Path, run_folder: Path) -> Iterator[Callable[[RunConfig], Pods]]:
    started: list[Pods] = []

    def start(config: RunConfig) -> Pods:
        started.append(Pods(config, str(run_folder), tmp_path / "pods"))
        return started[-1]

    yield start
    for nodes in started:
        nodes.close()


def sizes(nodes: Pods) -> list[int]:
    return [world["world_size"] for world in nodes.worlds()]


@pytest.mark.long
def test_world_shrinks_with_a_lost_spot_node_and_grows_with_its_replacement(
    run_folder: Path, start_nodes: Callable[[RunConfig], Pods], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = elastic_config(num_steps=4000, checkpoint_every_steps=5, export_every_steps=4000)
    begin(str(run_folder), config)
    store = open_store(str(run_folder))
    monkeypatch.setenv(STEP_DELAY_S, "0.05")
    nodes = start_nodes(config)
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    spot = nodes.start("spot", SPOT)
    nodes.until(lambda: sizes(nodes)[-1:] == [2])
    nodes.until(lambda: bool(checkpoints(store)))
    nodes.lose(spot)
    nodes.until(lambda: sizes(nodes)[-1:] == [1])
    nodes.start("spot", SPOT)
    nodes.until(lambda: sizes(nodes)[-1:] == [2])
    before = max(checkpoints(store))
    nodes.until(lambda: max(checkpoints(store)) > before)
    assert not anchor.ended, nodes.logs()


def test_every_agent_ends_with_0_once_training_is_done(
    run_folder: Path, start_nodes: Callable[[RunConfig], Pods]
) -> None:
    config = elastic_config(num_steps=3, checkpoint_every_steps=3, export_every_steps=3)
    config = begin(str(run_folder), config)
    nodes = start_nodes(config)
    nodes.start("rdzv")
    agents = [nodes.start("anchor", ANCHOR), nodes.start("spot", SPOT)]
    nodes.until(lambda: all(agent.ended for agent in agents))
    assert [agent.process.returncode for agent in agents] == [0, 0], nodes.logs()
    assert nodes.worlds()[-1]["pools"] == {"anchor": 1, "spot": 1}
    done = TrainingDone.from_json(
        open_store(str(run_folder)).get(RunLayout.TRAINING_DONE), source="training.json"
    )
    assert (done.num_steps, done.config_digest) == (3, config.digest())


def test_configuration_error_leaves_the_pod_with_42_at_once(
    start_nodes: Callable[[RunConfig], Pods],
) -> None:
    nodes = start_nodes(elastic_config())
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    nodes.until(lambda: anchor.ended)
    assert anchor.process.returncode == 42, nodes.logs()
    assert "no run at" in nodes.logs()
    (rule, *_) = nodes.spec("anchor")["podFailurePolicy"]["rules"]
    assert anchor.process.returncode in rule["onExitCodes"]["values"]


@pytest.mark.long
def test_loss_that_is_not_finite_is_not_tried_again_on_another_node(
    run_folder: Path, start_nodes: Callable[[RunConfig], Pods], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = elastic_config(num_steps=20)
    begin(str(run_folder), config)
    monkeypatch.setenv(POISONED_STEP, "2")
    nodes = start_nodes(config)
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    nodes.until(lambda: anchor.ended)
    assert anchor.process.returncode == 43, nodes.logs()


@pytest.mark.long
def test_evicted_agent_goes_in_time_and_is_not_taken_for_a_configuration_error(
    run_folder: Path, start_nodes: Callable[[RunConfig], Pods], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = elastic_config(num_steps=2000, checkpoint_every_steps=1000, export_every_steps=2000)
    begin(str(run_folder), config)
    monkeypatch.setenv(STEP_DELAY_S, "0.1")
    nodes = start_nodes(config)
    nodes.start("rdzv")
    anchor = nodes.start("anchor", ANCHOR)
    nodes.until(lambda: bool(nodes.worlds()))
    time.sleep(3)
    anchor.process.send_signal(signal.SIGTERM)
    anchor.process.wait(config.cluster.grace_period_s)
    assert anchor.process.returncode not in (0, 42), nodes.logs()
