"""Several hosts that are killed, cut off, frozen and brought back: training ends as if nothing had happened.

Hosts are network namespaces where this process may make them, else processes. The pods are those of the
rendered JobSet. Nothing is checkpointed before the end, so what is not lost was held in memory.
"""

import json
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig
from eosin.layout import RunLayout
from eosin.records import TrainingDone
from eosin.storage import open_store
from eosin.summary.training_log import read_events, read_training_log, training_cost
from tests.support.hosts import Host, Hosts, signal_group
from tests.support.pods import Pod, Pods, elastic_config
from tests.support.ranks import Leg, final_parameters, norm_difference, train_legs
from tests.support.training_run import CONSUMED, STEP_DELAY_S, begin

# Processes start slowly on a busy machine, and these tests start dozens.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]

# A third of a second a step of one rank: slow enough to be disturbed, whatever the machine.
_SLOT_DELAY_S = "0.04"
# Who is cut off or frozen must be missed by its keep-alive, long before a collective gives up on it; who only
# waits for a processor must not: at a load of ten a core, agents were struck after four seconds.
FAST = {"keep_alive_interval_s": 1, "keep_alive_attempts": 15, "process_group_timeout_s": 600}


@dataclass
class Site:
    """A run, the hosts it may use and its pods."""

    config: RunConfig
    folder: Path
    hosts: list[Host]
    pods: Pods

    @property
    def run_uri(self) -> str:
        return str(self.folder / "run")

    def reached(self, step: int) -> None:
        self.pods.until(lambda: self.pods.step() >= step)

    def has_met(self, num_hosts: int) -> None:
        """Wait until the newest world has so many ranks, or training has ended."""

        def met() -> bool:
            return self.pods.has_ended() or self.pods.worlds()[-1]["world_size"] == num_hosts

        self.pods.until(met)

    def worlds_of(self, size: int) -> int:
        return sum(world["world_size"] == size for world in self.pods.worlds())

    def ends_as_if_undisturbed(self, agents: list[Pod]) -> None:
        """Every agent of `agents` ends with 0, and the final state is that of one rank left alone."""
        self.pods.until(lambda: all(agent.ended for agent in agents))
        assert [agent.process.returncode for agent in agents] == [0] * len(agents), self.pods.logs()
        num_steps = self.config.train.num_steps
        record = open_store(self.run_uri).get(RunLayout.TRAINING_DONE)
        done = TrainingDone.from_json(record, source="training.json")
        assert (done.num_steps, done.config_digest) == (num_steps, self.config.digest())
        undisturbed = train_legs(self.config, self.folder / "undisturbed", [Leg(1, num_steps, "ddp")])
        ended = final_parameters(Path(self.run_uri), self.config, num_steps)
        assert norm_difference(ended, undisturbed) <= 1e-5
        assert not self.lost_or_foreign_samples()
        assert not [path for agent in agents for path in agent.shm.iterdir()], "memory was not given back"

    def lost_or_foreign_samples(self) -> set[tuple[int, int]]:
        """Samples (step, index) that somebody should have read and nobody did, or the other way round."""
        train = self.config.train
        wanted = {(step, index) for step in range(train.num_steps) for index in range(train.batch_size)}
        lines = [
            json.loads(line)
            for path in (self.folder / "consumed").glob("*.jsonl")
            for line in path.read_text().splitlines()
        ]
        return wanted ^ {(step, index) for step, indices in lines for index in indices}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts() as found:
        yield found


@pytest.fixture
def make_site(tmp_path: Path, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that begins a run on so many hosts, the store on one more."""
    started: list[Pods] = []
    (tmp_path / "consumed").mkdir()
    monkeypatch.setenv(CONSUMED, str(tmp_path / "consumed"))
    monkeypatch.setenv(STEP_DELAY_S, _SLOT_DELAY_S)

    def make(num_hosts: int = 2, num_steps: int = 40, **train: Any) -> Site:
        train = {"checkpoint_every_steps": num_steps, "export_every_steps": num_steps, **train}
        train["elastic"] = FAST | train.pop("elastic", {})
        config = elastic_config(max_spot_nodes=num_hosts - 1, num_steps=num_steps, **train)
        config = begin(str(tmp_path / "run"), config)
        own = [hosts.add() for _ in range(num_hosts)]
        pods = Pods(config, str(tmp_path / "run"), tmp_path / "pods", rendezvous=hosts.add())
        started.append(pods)
        pods.start("rdzv", pods.rendezvous)
        return Site(config, tmp_path, own, pods)

    yield make
    for pods in started:
        pods.close()


def start_all(site: Site) -> list[Pod]:
    pods = [site.pods.start("anchor", site.hosts[0])]
    pods += [site.pods.start("spot", host, index=index) for index, host in enumerate(site.hosts[1:])]
    site.pods.until(lambda: site.worlds_of(len(site.hosts)) > 0)
    return pods


def test_losing_rank_0_with_its_node_costs_no_step_that_another_node_holds(make_site: Any) -> None:
    site: Site = make_site(num_steps=24)
    anchor, spot = start_all(site)
    site.reached(6)
    held = spot.step()
    site.pods.lose(anchor)
    lost_s = time.time()
    site.pods.until(lambda: site.worlds_of(1) > 0)
    (alone,) = [world for world in site.pods.worlds() if world["world_size"] == 1]
    assert alone["start_step"] >= held >= 5
    site.ends_as_if_undisturbed([spot])
    check_cost(site, lost_s=lost_s)


def check_cost(site: Site, lost_s: float) -> None:
    """What the report reckons of the log, held against this machine's clock and what a step must take."""
    tree = site.config.model_dump(mode="json")
    for pool, price in zip(tree["cluster"]["pools"], (40.0, 16.0), strict=True):
        pool["price_usd_per_hour"] = price
    events = read_events(open_store(site.run_uri))
    log = read_training_log(events)
    assert log is not None
    cost = training_cost(log, events, RunConfig.model_validate(tree))
    assert cost.num_images == site.config.train.num_steps * site.config.train.batch_size
    anchor, spot = cost.pools
    assert (anchor.pool, anchor.num_lost, spot.pool, spot.num_lost) == ("anchor", 1, "spot", 0)
    both, alone = [next(w for w in site.pods.worlds() if w["world_size"] == size) for size in (2, 1)]
    met_s = datetime.fromisoformat(both["time"]).timestamp()
    went_on_s = datetime.fromisoformat(alone["time"]).timestamp()
    assert anchor.worker_hours * 3600 == pytest.approx(went_on_s - met_s, abs=0.1)
    assert went_on_s - lost_s <= anchor.lost_worker_hours * 3600 <= went_on_s - met_s + 0.1
    assert spot.lost_worker_hours == pytest.approx(anchor.lost_worker_hours) and anchor.usd and spot.usd
    assert anchor.usd == pytest.approx(40 * anchor.worker_hours)
    assert spot.lost_usd == pytest.approx(16 * spot.lost_worker_hours)
    at_most = site.config.train.batch_size * 3600 / (8 * float(_SLOT_DELAY_S))
    logged = [each for each in events if each.name == "step" and each.time_s >= went_on_s]
    assert (spot.images_per_worker_hour is not None) == (len(logged) > 1)
    assert 0 <= (spot.images_per_worker_hour or 0) <= at_most * 1.1


@pytest.mark.parametrize(("parallel", "memory"), [("ddp", "on"), ("ddp", "off"), ("fsdp", "on")])
def test_neither_a_node_that_joins_nor_one_that_is_told_to_go_costs_a_step(
    make_site: Any, parallel: str, memory: str
) -> None:
    """No snapshot is taken but for what is planned; without memory it is a checkpoint."""
    elastic = {"memory_snapshots": memory, "shutdown_timeout_s": 40}
    rare = {"snapshot_every_steps": 1000, "log_every_steps": 1, "elastic": elastic}
    site: Site = make_site(num_steps=40, parallel=parallel, **rare)

    def step() -> int:
        return max((int(event["step"]) for event in anchor.events("step")), default=0)

    anchor = site.pods.start("anchor", site.hosts[0])
    site.pods.until(lambda: step() >= 4)
    spot = site.pods.start("spot", site.hosts[1], index=0)
    site.pods.until(lambda: site.worlds_of(2) > 0)
    (grown,) = [world for world in site.pods.worlds() if world["world_size"] == 2]
    (before,) = steps_between(anchor, site.pods.worlds()[0], grown)
    assert grown["start_step"] == before >= 4
    site.pods.until(lambda: step() >= before + 4)
    spot.process.send_signal(signal.SIGTERM)
    spot.process.wait(site.config.cluster.grace_period_s)
    assert spot.process.returncode == 75, site.pods.logs()
    site.pods.until(lambda: site.worlds_of(1) > 1)
    shrunk = site.pods.worlds()[-1]
    (before,) = steps_between(anchor, grown, shrunk)
    assert shrunk["start_step"] == before
    site.ends_as_if_undisturbed([anchor])


def steps_between(pod: Pod, since: dict[str, Any], until: dict[str, Any]) -> list[int]:
    """The last step that the world which began with the event `since` finished before that of `until`."""
    steps = [event["step"] for event in pod.events("step") if since["time"] < event["time"] < until["time"]]
    return steps[-1:]


@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        pytest.param("spot", "snapshot-kept", id="joiner-before-the-round", marks=pytest.mark.long),
        pytest.param("spot", "round-*.json", id="joiner-before-its-first-step"),
        pytest.param("anchor", "snapshot-kept", id="holder-before-the-round"),
    ],
)
def test_an_agent_killed_while_the_world_grows_costs_no_step(
    make_site: Any, victim: str, moment: str
) -> None:
    """No snapshot is taken but the one before the join: the other goes on from it, and both once all is back.
    A joiner's node is lost; of a holder the container is started again, with the memory of its pod."""
    rare = {"snapshot_every_steps": 1000, "log_every_steps": 1, "elastic": {"keep_alive_attempts": 8}}
    site: Site = make_site(num_steps=30, **rare)
    pods = {"anchor": site.pods.start("anchor", site.hosts[0])}
    site.pods.until(lambda: bool(pods["anchor"].events("step")))
    pods["spot"] = site.pods.start("spot", site.hosts[1])
    watched = pods["anchor" if moment == "snapshot-kept" else "spot"]
    site.pods.until(lambda: bool(watched.reports(moment)))
    signal_group(pods[victim].process, signal.SIGKILL)
    pods[victim].process.wait(60)
    held = pods["anchor"].step()
    assert held == pods["anchor"].events("step")[-1]["step"]
    if victim == "spot":
        site.pods.lose(pods[victim])
        site.pods.until(lambda: site.worlds_of(1) > 1)
        assert site.pods.worlds()[-1]["start_step"] == held
        pods[victim] = site.pods.start(victim, site.hosts[1])
    else:
        pods[victim] = site.pods.start(victim, site.hosts[0], memory_of=pods[victim])
    site.pods.until(lambda: site.worlds_of(2) > 0)
    assert site.pods.worlds()[-1]["start_step"] >= held
    site.ends_as_if_undisturbed(list(pods.values()))


WAYS = ["terminate", "kill", "cut", "freeze"]


def disturb(site: Site, pod: Pod, way: str) -> None:
    """Do it, and see the others go on without the host."""
    survivors_before = len(site.pods.worlds())
    if way == "terminate":
        pod.process.send_signal(signal.SIGTERM)
        pod.process.wait(site.config.cluster.grace_period_s)
        assert pod.process.returncode not in (0, 42, 43), site.pods.logs()
    elif way == "kill":
        site.pods.lose(pod)
    elif way == "cut":
        pod.host.cut()
    else:
        signal_group(pod.process, signal.SIGSTOP)
    site.pods.until(lambda: len(site.pods.worlds()) > survivors_before or site.pods.has_ended())


def bring_back(site: Site, pod: Pod, way: str) -> Pod:
    """The host is there again: as it was, or with a pod in place of one that has ended."""
    if way == "cut":
        pod.host.heal()
    elif way == "freeze":
        signal_group(pod.process, signal.SIGCONT)
    if pod.ended:
        return site.pods.start(pod.job, pod.host, index=pod.index)
    return pod


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("victim", [0, 1], ids=["rank-0", "rank-1"])
@pytest.mark.parametrize("way", WAYS)
def test_any_host_may_leave_in_any_way_and_come_back(
    make_site: Any, way: str, victim: int, parallel: str
) -> None:
    site: Site = make_site(num_steps=80, parallel=parallel)
    pods = start_all(site)
    site.reached(8)
    disturb(site, pods[victim], way)
    assert site.pods.worlds()[-1]["start_step"] >= 7, "what the other host held was lost"
    site.reached(site.pods.step() + 4)
    pods[victim] = bring_back(site, pods[victim], way)
    site.pods.until(lambda: site.worlds_of(2) > 1 or site.pods.has_ended())
    keep_alive(site, pods)
    site.ends_as_if_undisturbed(pods)


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_rendezvous_store_may_die_and_come_back(make_site: Any, parallel: str) -> None:
    site: Site = make_site(num_steps=60, parallel=parallel)
    agents = start_all(site)
    site.reached(8)
    store = site.pods.pods[0]
    site.pods.lose(store)
    site.pods.until(lambda: all("joining again" in agent.log.read_text() for agent in agents))
    site.pods.start("rdzv", store.host)
    site.pods.until(lambda: site.worlds_of(2) > 1)
    assert site.pods.worlds()[-1]["start_step"] >= 7
    site.ends_as_if_undisturbed(agents)


def keep_alive(site: Site, pods: list[Pod]) -> None:
    """What the Job controller does: a pod that failed is made anew, until training has ended."""

    def all_ended_well() -> bool:
        for place, pod in enumerate(pods):
            if pod.ended and pod.process.returncode != 0:
                assert pod.process.returncode not in (42, 43), site.pods.logs()
                pods[place] = site.pods.start(pod.job, pod.host, index=pod.index)
        return site.pods.has_ended()

    site.pods.until(all_ended_well)


def replay(site: Site, agents: list[Pod], seed: int, num_events: int) -> list[str]:
    """A spot market: nodes leave in any way and come back a while later, drawn from `seed`; what happened."""
    draws = random.Random(seed)
    away: dict[int, str] = {}
    story: list[str] = []
    for _ in range(num_events):
        # A node that has not joined yet cannot be missed.
        site.has_met(len(agents) - len(away))
        goal = site.pods.step() + draws.randint(2, 5)
        site.pods.until(lambda goal=goal: site.pods.step() >= goal or site.pods.has_ended())
        if site.pods.has_ended():
            break
        place = draws.randrange(len(agents))
        if place in away:
            way = away.pop(place)
            agents[place] = bring_back(site, agents[place], way)
            story.append(f"{place} back")
        elif len(away) < len(agents) - 1:
            way = draws.choice([w for w in WAYS if w != "cut" or agents[place].host.can_be_cut])
            disturb(site, agents[place], way)
            away[place] = way
            story.append(f"{way} {place}")
    for place, way in away.items():
        agents[place] = bring_back(site, agents[place], way)
    return story


@pytest.mark.long
@pytest.mark.parametrize(("parallel", "seed"), [("ddp", 20261), ("fsdp", 20262)])
def test_a_replayed_spot_market_ends_with_the_undisturbed_trajectory(
    make_site: Any, parallel: str, seed: int
) -> None:
    """Three hosts on 8 microbatches: shares of 3, 3 and 2, then of 4 and 4, then of 8."""
    site: Site = make_site(num_hosts=3, num_steps=100, parallel=parallel)
    agents = start_all(site)
    story = replay(site, agents, seed, num_events=10)
    assert len(story) >= 4, story
    keep_alive(site, agents)
    site.ends_as_if_undisturbed(agents)
