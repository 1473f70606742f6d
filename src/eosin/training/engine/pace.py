"""Micro-batches dealt to ranks by their measured speed: a pool of mixed nodes runs as fast as it can.

Who computes which micro-batch never changes the result, so a deal may change at any step boundary.
"""

from __future__ import annotations

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
_FIRST_STRETCH = 10
# A change of the deal lets the queue of patches run empty once.
_WORTH_IT = 0.95
_WISE_SLOTS = 4


class Stopwatch:
    """Seconds this rank works by itself; on a GPU by events, so that nothing waits for the clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = self._began_s = 0.0

    def start(self) -> None:
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._events.append((begin, end))
        self._began_s = time.perf_counter()

    def stop(self) -> None:
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


class Dealer:
    """Watches this rank's pace and, with the others, deals anew.

    With `in_step` shares stay as they are: ranks whose parameters are sharded wait for each other in every
    pass, and run as many as the largest share has.
    """

    def __init__(self, config: ElasticConfig, world: World, log: RunLog, *, in_step: bool) -> None:
        wanted = config.deal == "speed" and world.size > 1 and not in_step
        self.stopwatch = Stopwatch(world.device) if wanted else None
        """What must run while this rank works by itself."""
        self.memory: Path | None = None
        """Where this rank's pace outlives it, if anywhere."""
        self._config = config
        self._world = world
        self._log = log
        self._seconds = 0.0
        self._num_steps = self._num_slots = 0

    def stretches(self, start: int, end: int) -> Iterator[range]:
        """Steps [start, end) in stretches; a deal is due before each."""
        length = _FIRST_STRETCH if self.stopwatch is not None else end - start
        while start < end:
            yield range(start, min(start + length, end))
            start, length = start + length, self._config.deal_every_steps

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
            self._num_slots += len(self._world.own_slots)

    def deal(self) -> None:
        """Deal by the paces of all ranks, where that saves time. A collective, at a step boundary."""
        if self.stopwatch is None:
            return
        pace = self._seconds / self._num_slots if self._num_slots else self._remembered()
        self._seconds, self._num_steps, self._num_slots = 0.0, 0, 0
        self._remember(pace)
        paces = known_paces(self._world.gather_json(pace))
        if not paces:
            return
        current = [len(self._world.slots_of(rank)) for rank in range(self._world.size)]
        shares = shares_by_pace(paces, self._world.num_slots)
        if _longest_s(shares, paces) < _WORTH_IT * _longest_s(current, paces):
            self._world.deal.shares = tuple(shares)
            if self._world.rank == 0:
                self._log.event("deal", slots=shares, seconds_per_slot=[round(p, 6) for p in paces])

    def _remembered(self) -> float | None:
        try:
            value = json.loads(self.memory.read_text()) if self.memory is not None else None
        except (OSError, ValueError):
            return None
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    def _remember(self, pace: float | None) -> None:
        if self.memory is None or pace is None:
            return
        part = self.memory.with_suffix(".pace")
        try:
            part.write_text(json.dumps(pace))
            part.replace(self.memory)
        except OSError:  # a full or vanished folder costs an even start, nothing more
            return


def slots_advice(num_slots: int, world_size: int) -> str:
    """What to say where shares are too coarse to follow speed; empty where they are not."""
    if world_size == 1 or num_slots >= _WISE_SLOTS * world_size:
        return ""
    wise = _WISE_SLOTS * world_size
    return (
        f"{num_slots} micro-batches for {world_size} ranks: with fewer than {_WISE_SLOTS} each, shares are"
        f" too coarse to follow the ranks' speed; begin a new run with train.num_slots={wise}"
    )


def known_paces(paces: Sequence[float | None]) -> list[float]:
    """Seconds a slot of every rank; a rank that is new is taken for a middling one. Empty: none is known."""
    known = [pace for pace in paces if pace]
    return [pace or statistics.median(known) for pace in paces] if known else []


def shares_by_pace(paces: Sequence[float], num_slots: int) -> list[int]:
    """Slots of each rank so that the slowest ends as early as it can; at least one each where there are
    enough, so that everyone's pace stays known."""
    shares = [1 if rank < num_slots else 0 for rank in range(len(paces))]
    for _ in range(num_slots - sum(shares)):
        ends_first = min(range(len(paces)), key=lambda rank: ((shares[rank] + 1) * paces[rank], rank))
        shares[ends_first] += 1
    return shares


def _longest_s(shares: Sequence[int], paces: Sequence[float]) -> float:
    return max(share * pace for share, pace in zip(shares, paces, strict=True))
