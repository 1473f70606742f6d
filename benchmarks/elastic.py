"""A spot market, twice: elastic with snapshots in memory, and the whole job restarted from checkpoints.

    python benchmarks/elastic.py [--seed 7] [--num-losses 4] [--steps 240]

Hosts are network namespaces (root), else processes. The trace is drawn from the seed as times and nodes: a
node is lost without a word (SIGKILL, its memory too) and comes back a while later. `elastic` is what a
JobSet of eosin does. `restart` runs the same workers on the same trace as a job of fixed size does: whatever
node is lost, all pods end, and all start again from the newest checkpoint once the node is back; it keeps
no snapshots in memory. Both checkpoint every 60 steps. Prints one JSON line a way: seconds from each loss to
the end of the next step, steps that had to be done again, and goodput, which is the seconds of the
undisturbed run over those of this one.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.hosts import Host, Hosts
from tests.support.pods import Pod, Pods, elastic_config
from tests.support.training_run import CONSUMED, STEP_DELAY_S, begin

NUM_HOSTS = 2
CHECKPOINT_EVERY = 60
_POLL_S = 0.02


@dataclass(frozen=True)
class Loss:
    """A node is lost `after_s` of undisturbed training, and away for `away_s`."""

    after_s: float
    node: int
    away_s: float


@dataclass
class Outcome:
    recovery_s: list[float] = field(default_factory=list)
    steps_lost: list[int] = field(default_factory=list)
    wall_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--num-losses", type=int, default=4)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--microbatch-ms", type=float, default=30.0, help="added to every microbatch")
    options = parser.parse_args()
    os.environ[STEP_DELAY_S] = str(options.microbatch_ms / 1e3)
    trace = draw(options.seed, options.num_losses)
    with Hosts() as hosts:
        print(json.dumps({"hosts": "network namespaces" if hosts.namespaces else "processes",
                          "trace": [vars(loss) for loss in trace]}), flush=True)  # fmt: skip
        calm = run(hosts, "elastic", [], options.steps)
        print(json.dumps({"way": "undisturbed", "wall_s": round(calm.wall_s, 1)}), flush=True)
        for way in ("elastic", "restart"):
            found = run(hosts, way, trace, options.steps)
            print(json.dumps(summary(way, found, calm)), flush=True)


def draw(seed: int, num_losses: int) -> list[Loss]:
    """Times between losses and of absence are exponential, with floors that let a world form."""
    draws = random.Random(seed)
    return [
        Loss(6 + draws.expovariate(1 / 4), draws.randrange(NUM_HOSTS), 8 + draws.expovariate(1 / 6))
        for _ in range(num_losses)
    ]


def summary(way: str, found: Outcome, calm: Outcome) -> dict[str, Any]:
    return {
        "way": way,
        "wall_s": round(found.wall_s, 1),
        "goodput": round(calm.wall_s / found.wall_s, 3),
        "recovery_s_median": round(statistics.median(found.recovery_s), 1),
        "recovery_s": [round(seconds, 1) for seconds in found.recovery_s],
        "steps_lost": found.steps_lost,
    }


def run(hosts: Hosts, way: str, trace: list[Loss], num_steps: int) -> Outcome:
    """Train to the end through the trace; seconds count from the first step on."""
    with tempfile.TemporaryDirectory(prefix="eosin-elastic-") as folder:
        site = _Site(hosts, way, Path(folder), num_steps)
        try:
            return site.through(trace)
        finally:
            site.pods.close()


class _Site:
    def __init__(self, hosts: Hosts, way: str, folder: Path, num_steps: int) -> None:
        self.elastic = way == "elastic"
        self._consumed = folder / "consumed"
        self._consumed.mkdir()
        os.environ[CONSUMED] = str(self._consumed)
        config = elastic_config(
            max_spot_nodes=NUM_HOSTS - 1,
            num_steps=num_steps,
            checkpoint_every_steps=CHECKPOINT_EVERY,
            export_every_steps=num_steps,
            elastic={
                "keep_alive_interval_s": 1,
                "keep_alive_attempts": 3,
                "memory_snapshots": "on" if self.elastic else "off",
                # A job of fixed size begins from the bucket, not from what a worker publishes as it goes.
                "shutdown_timeout_s": 10 if self.elastic else 1,
            },
            snapshot_every_steps=1 if self.elastic else num_steps,
        )
        begin(str(folder / "run"), config)
        self._hosts: list[Host] = [hosts.add() for _ in range(NUM_HOSTS)]
        self.pods = Pods(config, str(folder / "run"), folder / "pods", rendezvous=hosts.add())
        self.pods.start("rdzv", self.pods.rendezvous)
        self._agents: list[Pod] = []

    def through(self, trace: list[Loss]) -> Outcome:
        outcome = Outcome()
        self._agents = [self._start(node) for node in range(NUM_HOSTS)]
        self._wait(lambda: self._world_size() == NUM_HOSTS and self._last_read(self._reads()) > 1)
        began_s = time.monotonic()
        for loss in trace:
            time.sleep(loss.after_s)
            if self.pods.has_ended():
                break
            self._suffer(loss, outcome)
        self._wait(lambda: self.pods.has_ended())
        outcome.wall_s = time.monotonic() - began_s
        return outcome

    def _suffer(self, loss: Loss, outcome: Outcome) -> None:
        before, worlds = set(self._reads()), len(self.pods.worlds())
        reached, lost_s = self._last_read(self._reads()), time.monotonic()
        self.pods.lose(self._agents[loss.node])
        if not self.elastic:
            for agent in self._agents:
                if not agent.ended:
                    self.pods.lose(agent)
            time.sleep(loss.away_s)
            self._agents = [self._start(node) for node in range(NUM_HOSTS)]
        self._wait(lambda: len(self.pods.worlds()) > worlds)
        begun_at = int(self.pods.worlds()[-1]["start_step"])
        # Patches of a world's second step are asked for once its first is done.
        self._wait(lambda: self._last_read(set(self._reads()) - before) > begun_at)
        outcome.recovery_s.append(time.monotonic() - lost_s)
        outcome.steps_lost.append(max(0, reached - begun_at))
        if self.elastic:
            time.sleep(max(0.0, loss.away_s - outcome.recovery_s[-1]))
            self._agents[loss.node] = self._start(loss.node)
            self._wait(lambda: self._world_size() == NUM_HOSTS)

    def _start(self, node: int) -> Pod:
        job = "spot" if node else "anchor"
        return self.pods.start(job, self._hosts[node], index=max(0, node - 1))

    def _world_size(self) -> int:
        worlds = self.pods.worlds()
        return int(worlds[-1]["world_size"]) if worlds else 0

    def _reads(self) -> list[Path]:
        """What each process has asked for, a file each."""
        return list(self._consumed.glob("*.jsonl"))

    def _last_read(self, paths: Iterable[Path]) -> int:
        """The step that the process of `paths` which read last has begun: as many are done."""
        newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
        lines = newest.read_text().split("\n")[:-1] if newest is not None else []
        return int(json.loads(lines[-1])[0]) if lines else 0

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 400
        while not condition() and not self.pods.has_ended():
            if time.monotonic() > deadline_s:
                raise TimeoutError(self.pods.logs())
            time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
