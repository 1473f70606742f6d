"""Load balance: microbatches shared out to ranks by their measured speed.

A pool of mixed nodes then runs as fast as it can. Who computes which microbatch never changes the result, so
shares may change at any step boundary.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from eosin.config.train import ElasticConfig
from eosin.observability import RunLog
from eosin.training.world import World

# Long enough to know a rank's speed after its first, slow step.
_FIRST_INTERVAL_STEPS = 10
# A change of the shares lets the queue of patches run empty once.
_WORTH_IT = 0.95
_ADVISED_MICROBATCHES = 4


class Stopwatch:
    """Seconds this rank works by itself; on a GPU by events, so that nothing waits for the clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = self._began_s = 0.0

    def start(self) -> None:
        """Work begins."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._events.append((begin, end))
        self._began_s = time.perf_counter()

    def stop(self) -> None:
        """Work ends, or is asked for entirely."""
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began_s

    def lap(self) -> float:
        """Seconds since the last lap."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class LoadBalancer:
    """Measures this rank's time a microbatch and, with the others, shares the microbatches out anew.

    With `in_step` shares stay as they are: ranks whose parameters are sharded wait for each other in every
    pass, and run as many as the largest share has.
    """

    def __init__(self, config: ElasticConfig, world: World, log: RunLog, *, in_step: bool) -> None:
        wanted = config.load_balance == "speed" and world.size > 1 and not in_step
        self.stopwatch = Stopwatch(world.device) if wanted else None
        """What must run while this rank works by itself."""
        self.memory: Path | None = None
        """Where this rank's time a microbatch outlives it, if anywhere."""
        self._config = config
        self._world = world
        self._log = log
        self._seconds = 0.0
        self._num_steps = self._num_microbatches = 0

    def intervals(self, start: int, end: int) -> Iterator[range]:
        """Steps [start, end) in intervals; `balance` is due before each."""
        length = _FIRST_INTERVAL_STEPS if self.stopwatch is not None else end - start
        while start < end:
            yield range(start, min(start + length, end))
            start, length = start + length, self._config.load_balance_every_steps

    @contextmanager
    def working(self) -> Iterator[None]:
        """While this rank works by itself."""
        if self.stopwatch is not None:
            self.stopwatch.start()
        yield
        if self.stopwatch is not None:
            self.stopwatch.stop()

    def stepped(self, waited_s: float) -> None:
        """A step is done, before which this rank waited so long for its patches."""
        if self.stopwatch is None:
            return
        worked_s, self._num_steps = self.stopwatch.lap(), self._num_steps + 1
        if self._num_steps > 1:
            self._seconds += worked_s + waited_s
            self._num_microbatches += len(self._world.own_microbatches)

    def balance(self) -> None:
        """Change the shares to fit the times of all ranks, where that saves time. A collective, at a step
        boundary."""
        if self.stopwatch is None:
            return
        each_s = self._seconds / self._num_microbatches if self._num_microbatches else self._remembered()
        self._seconds, self._num_steps, self._num_microbatches = 0.0, 0, 0
        self._remember(each_s)
        times_s = known_times(self._world.gather_json(each_s))
        if not times_s:
            return
        current = [len(self._world.microbatches_of(rank)) for rank in range(self._world.size)]
        shares = balanced_shares(times_s, self._world.num_microbatches)
        if _longest_s(shares, times_s) < _WORTH_IT * _longest_s(current, times_s):
            self._world.shares[:] = shares
            if self._world.rank == 0:
                self._log.event(
                    "load_balance", microbatches=shares, seconds_each=[round(t, 6) for t in times_s]
                )

    def _remembered(self) -> float | None:
        try:
            value = json.loads(self.memory.read_text()) if self.memory is not None else None
        except (OSError, ValueError):
            return None
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    def _remember(self, each_s: float | None) -> None:
        if self.memory is None or each_s is None:
            return
        part = self.memory.with_suffix(".time")
        try:
            part.write_text(json.dumps(each_s))
            part.replace(self.memory)
        except OSError:  # a full or vanished folder costs an even start, nothing more
            return


def granularity_advice(num_microbatches: int, world_size: int) -> str:
    """What to say where shares are too coarse to follow speed; empty where they are not."""
    advised = _ADVISED_MICROBATCHES * world_size
    if world_size == 1 or num_microbatches >= advised:
        return ""
    return (
        f"{num_microbatches} microbatches for {world_size} ranks: with fewer than {_ADVISED_MICROBATCHES}"
        " each, shares are too coarse to follow the ranks' speed; begin a new run with"
        f" train.num_microbatches={advised}"
    )


def known_times(times_s: Sequence[float | None]) -> list[float]:
    """Seconds a microbatch of every rank; a new rank is taken for a middling one. Empty: none is known."""
    known = [each_s for each_s in times_s if each_s]
    return [each_s or statistics.median(known) for each_s in times_s] if known else []


def balanced_shares(times_s: Sequence[float], num_microbatches: int) -> list[int]:
    """Microbatches of each rank so that the slowest ends as early as it can; at least one each where there
    are enough, so that everyone's time stays known."""
    shares = [1 if rank < num_microbatches else 0 for rank in range(len(times_s))]
    for _ in range(num_microbatches - sum(shares)):
        ends_first = min(range(len(times_s)), key=lambda rank: ((shares[rank] + 1) * times_s[rank], rank))
        shares[ends_first] += 1
    return shares


def _longest_s(shares: Sequence[int], times_s: Sequence[float]) -> float:
    return max(share * each_s for share, each_s in zip(shares, times_s, strict=True))
