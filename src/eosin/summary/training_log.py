"""Log of training: losses by step, speed by time, each elastic event; and what it cost, pool by pool."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from eosin.config import RunConfig
from eosin.config.cluster import NodePoolConfig
from eosin.layout import RunLayout
from eosin.observability import short_text
from eosin.storage import Store

# The report must not depend on how often it was written.
_OWN_LOG = "summarize"


@dataclass(frozen=True)
class Event:
    """One line. `time_s`: seconds since 1970."""

    time_s: float
    source: str
    name: str
    fields: dict[str, Any]

    def number(self, name: str) -> float | None:
        """A numeric field; None where it is absent or not a number."""
        value = self.fields.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def date_of(time_s: float) -> str:
    """ISO date and time in UTC, to the second."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def read_events(store: Store) -> tuple[Event, ...]:
    """Every event of the run by time; a line that is not one (cut by a kill) is passed over."""
    keys = [info.key for info in store.list(RunLayout.LOGS) if info.key.endswith(".jsonl")]
    wanted = [key for key in keys if not key.startswith(RunLayout.logs(_OWN_LOG))]
    events = [event for key in wanted for event in _parse(store.get(key).splitlines())]
    return tuple(sorted(events, key=lambda event: event.time_s))


def _parse(lines: Iterable[bytes]) -> Iterable[Event]:
    for line in lines:
        try:
            fields = json.loads(line)
            time_s = datetime.fromisoformat(fields.pop("time")).timestamp()
            yield Event(time_s, str(fields.pop("source")), str(fields.pop("event")), fields)
        except (ValueError, KeyError, AttributeError, TypeError):
            continue


Points = list[tuple[float, float]]

# Numeric fields of a step event that are no terms of the loss.
# What a step says of its health, by step, and of the machine, by time; each in the order of the report.
HEALTH = (
    "rankme", "teacher_entropy", "feature_center_norm", "center_norm", "patch_locality", "patch_class_cosine",
    "grad_norm",
)  # fmt: skip
MACHINE = ("patches_per_s", "mfu", "data_wait_share", "memory_gib", "checkpoint_age_s", "world_size")
_NOT_TERMS = {*HEALTH, *MACHINE, "step", "num_steps", "loss", "lr", "images_per_s", "eta_s"}
_ROUTINE = {"step", "speed", "progress", "checkpoint", "export", "init", "plan", "patch-redrawn"}
_SOURCES = ("train", "launch")
_MAX_EVENTS = 60


@dataclass(frozen=True)
class WorldEvent:
    """Something that happened to the workers, `minutes` after the first step (0: before it)."""

    minutes: float
    name: str
    text: str


@dataclass(frozen=True)
class TrainingLog:
    """What the log of training says, as series to draw."""

    terms: dict[str, Points]
    """Loss and its terms by step."""
    lr: Points
    health: dict[str, Points]
    """Signals of collapse and the gradient's norm, by step."""
    machine: dict[str, Points]
    """Speed, utilisation, waiting, memory and world size, by minutes since the first step event."""
    world_events: tuple[WorldEvent, ...]
    num_more_events: int
    num_checkpoints: int
    num_redrawn: int
    """Patches that could not be read and were drawn again."""
    num_restarts: int
    """Worlds after the first."""
    device: str
    """What the workers ran on: cuda or cpu; empty where it was not logged."""
    num_replayed: int
    """Step events that a later attempt reported again."""
    data_wait_share: float | None
    """Mean share of the time in which steps waited for patches."""


def read_training_log(events: Sequence[Event]) -> TrainingLog | None:
    """None where training has not logged a step."""
    steps = [event for event in events if event.name == "step" and event.number("step") is not None
             and event.number("loss") is not None]  # fmt: skip
    if not steps:
        return None
    began_s = steps[0].time_s
    final = {int(event.fields["step"]): event for event in steps}
    # A restart replays steps after the last checkpoint; the newest word on a step counts.
    ordered = [final[step] for step in sorted(final)]
    told = (e for e in events if e.source.split("-")[0] in _SOURCES and e.name not in _ROUTINE)
    world = [_world_event(event, began_s) for event in told]
    waits = [value for event in ordered if (value := event.number("data_wait_share")) is not None]
    return TrainingLog(
        terms={name: _by_step(ordered, name) for name in _terms(ordered)},
        lr=_by_step(ordered, "lr"),
        health={name: _by_step(ordered, name) for name in HEALTH},
        machine={name: _by_time(steps, name, began_s) for name in MACHINE},
        world_events=tuple(world[-_MAX_EVENTS:]),
        num_more_events=max(0, len(world) - _MAX_EVENTS),
        num_checkpoints=sum(event.name == "checkpoint" for event in events),
        num_redrawn=max(
            (int(n) for e in events if e.name == "patch-redrawn" and (n := e.number("count"))), default=0
        ),
        num_restarts=max(0, sum(event.name == "world" for event in events) - 1),
        device=next(
            (str(e.fields["device"]) for e in events if e.name == "world" and "device" in e.fields), ""
        ),
        num_replayed=len(steps) - len(ordered),
        data_wait_share=sum(waits) / len(waits) if waits else None,
    )


def _terms(steps: Sequence[Event]) -> list[str]:
    names = {name for event in steps for name in event.fields if event.number(name) is not None}
    return ["loss", *sorted(names - _NOT_TERMS)]


def _by_step(steps: Sequence[Event], name: str) -> Points:
    return [
        (float(event.fields["step"]), value) for event in steps if (value := event.number(name)) is not None
    ]


def _by_time(steps: Sequence[Event], name: str, began_s: float) -> Points:
    return [
        ((event.time_s - began_s) / 60, value) for event in steps if (value := event.number(name)) is not None
    ]


def _world_event(event: Event, began_s: float) -> WorldEvent:
    text = " · ".join(f"{name} {short_text(value)}" for name, value in event.fields.items())
    return WorldEvent(max(0.0, event.time_s - began_s) / 60, event.name, text)


_COLLAPSED_ENTROPY, _UNIFORM_ENTROPY = 0.05, 0.999
_MUCH_WAITING = 0.1
_LOST_RANK = 0.5


@dataclass(frozen=True)
class Health:
    """Whether training went well, from its log."""

    went_well: bool
    sentence: str


def training_health(log: TrainingLog, *, num_prototypes: int, has_ended: bool) -> Health:
    """Told from the loss, RankMe, the teacher's entropy over `num_prototypes`, waiting and restarts.

    A collapse is an entropy at one of its ends, or a RankMe of less than half of its best. The loss alone
    says little: with sharpened targets it may stay near the logarithm of the number of prototypes.
    """
    bad, facts = [], []
    loss = [value for _, value in log.terms["loss"]]
    if all(map(math.isfinite, loss)):
        facts.append(f"the loss {_moved(loss)}")
    else:
        bad.append("the loss is not finite")
    ranks = [value for _, value in log.health["rankme"]]
    if len(ranks) > 1:
        lost = ranks[-1] < _LOST_RANK * max(ranks)
        (bad if lost else facts).append(
            f"RankMe {_moved(ranks)}" + (f", {max(ranks):.3g} at best" if lost else "")
        )
    entropies, most = [value for _, value in log.health["teacher_entropy"]], math.log(num_prototypes)
    if entropies:
        share, told = (
            entropies[-1] / most,
            f"the teacher's entropy ended at {entropies[-1]:.2f} of {most:.2f} nats",
        )
        if share < _COLLAPSED_ENTROPY:
            bad.append(f"{told}: all images go to few prototypes")
        elif share > _UNIFORM_ENTROPY and len(entropies) > 1:
            bad.append(f"{told}: images go to all prototypes alike")
        else:
            facts.append(told)
    if log.data_wait_share is not None:
        waited = f"{100 * log.data_wait_share:.0f} % of the time went to waiting for patches"
        (bad if round(log.data_wait_share, 2) > _MUCH_WAITING else facts).append(waited)
    facts.append(_restarts(log))
    words = "went well" if not bad else f"needs a look: {'; '.join(bad)}"
    rest = f"{'; ' if bad else ': '}{', '.join(facts)}"
    return Health(not bad, f"Training {words if has_ended else f'has not ended and {words}'}{rest}.")


def _restarts(log: TrainingLog) -> str:
    if not log.num_restarts:
        return "nothing was restarted"
    times = "once" if log.num_restarts == 1 else f"{log.num_restarts} times"
    replayed = f" ({log.num_replayed} logged steps again)" if log.num_replayed else ""
    return f"its workers began anew {times}{replayed}"


def _moved(values: Sequence[float]) -> str:
    """From the mean of the first tenth to that of the last."""
    part = max(1, len(values) // 10)
    before, after = sum(values[:part]) / part, sum(values[-part:]) / part
    change = after - before
    word = "stayed" if abs(change) < 0.01 * max(abs(before), abs(after)) else "rose" if change > 0 else "fell"
    return f"stayed at {after:.3g}" if word == "stayed" else f"{word} from {before:.3g} to {after:.3g}"


@dataclass(frozen=True)
class PoolCost:
    """What the workers of one node pool did, over all worlds of a training."""

    pool: str
    spot: bool
    worker_hours: float
    """From the beginning of each world to that of the next, or to the last step."""
    num_lost: int
    """Workers that a world had and the next one did not: preempted, or lost otherwise."""
    lost_worker_hours: float
    """Of `worker_hours`: work that the next world did again, and the wait for it, to the logged step."""
    images_per_worker_hour: float | None = None
    """Between steps of worlds of this pool alone; None where there was none."""
    usd: float | None = None
    """None where the pool has no price."""
    lost_usd: float | None = None
    """Of `usd`, that of `lost_worker_hours`."""


@dataclass(frozen=True)
class Cost:
    """What training took, from its log; sums over all its worlds."""

    num_images: int
    wall_s: float
    """From the first step to the last, interruptions included."""
    worker_hours: float
    """Each worker's time between steps; a worker is a GPU where there are GPUs."""
    on_gpus: bool
    usd: tuple[float, float] | None = None
    """At the cheapest and the dearest pool's price; None where a pool has none."""
    pools: tuple[PoolCost, ...] = ()
    """Of a training on a cluster, in the order of its pools; empty where its log names none."""


@dataclass(frozen=True)
class _World:
    """The workers between one `world` event and the next."""

    workers: dict[str, int]
    """By pool."""
    began_s: float
    ended_s: float
    steps: tuple[tuple[float, int], ...]
    """(time in s, step) of each step event."""
    resumed_at: int | None
    """Step from which the next world went on; None: this was the last one."""

    @property
    def lost_s(self) -> float:
        """Seconds that did not bring the training on."""
        if self.resumed_at is None:
            return 0.0
        kept = [time_s for time_s, step in self.steps if step <= self.resumed_at]
        return self.ended_s - max(kept, default=self.began_s)


def training_cost(log: TrainingLog, events: Sequence[Event], config: RunConfig) -> Cost:
    """Images seen, time, and the price of it where every pool of the cluster has one."""
    sizes = log.machine["world_size"]
    hours = sum(n * (after - before) / 60 for (before, n), (after, _) in pairwise(sizes))
    num_images = int(log.terms["loss"][-1][0]) * config.train.batch_size
    prices = [_worker_price(pool, config) for pool in config.cluster.pools]
    known = [price for price in prices if price is not None]
    priced = log.device == "cuda" and len(known) == len(prices)
    usd = (min(known) * hours, max(known) * hours) if priced else None
    wall_s = 60 * (sizes[-1][0] - sizes[0][0]) if sizes else 0.0
    worlds = list(_worlds(events))
    pools = tuple(_pool_cost(pool, worlds, config) for pool in config.cluster.pools)
    named = {name for world in worlds for name in world.workers}
    return Cost(num_images, wall_s, hours, log.device == "cuda", usd,
                tuple(pool for pool in pools if pool.pool in named))  # fmt: skip


def _worlds(events: Sequence[Event]) -> Iterator[_World]:
    begun = [index for index, event in enumerate(events) if event.name == "world"]
    for index, after in zip(begun, [*begun[1:], None], strict=True):
        pools = events[index].fields.get("pools")
        steps = tuple((event.time_s, int(step)) for event in events[index:after] if event.name == "step"
                      and (step := event.number("step")) is not None)  # fmt: skip
        began_s = events[index].time_s
        ended_s = events[after].time_s if after else max((time_s for time_s, _ in steps), default=began_s)
        resumed_at = int(events[after].number("start_step") or 0) if after else None
        workers = Counter(pools) if isinstance(pools, dict) else Counter()
        yield _World(dict(workers), began_s, ended_s, steps, resumed_at)


def _pool_cost(pool: NodePoolConfig, worlds: Sequence[_World], config: RunConfig) -> PoolCost:
    workers = [world.workers.get(pool.name, 0) for world in worlds]
    hours = sum(n * (world.ended_s - world.began_s) for n, world in zip(workers, worlds, strict=True)) / 3600
    lost = sum(n * world.lost_s for n, world in zip(workers, worlds, strict=True)) / 3600
    alone = [world for world in worlds if set(world.workers) == {pool.name} and len(world.steps) > 1]
    images = sum(world.steps[-1][1] - world.steps[0][1] for world in alone) * config.train.batch_size
    alone_h = sum(w.workers[pool.name] * (w.steps[-1][0] - w.steps[0][0]) for w in alone) / 3600
    price = _worker_price(pool, config)
    return PoolCost(
        pool=pool.name,
        spot=pool.spot,
        worker_hours=hours,
        num_lost=sum(max(0, before - after) for before, after in pairwise(workers)),
        lost_worker_hours=lost,
        images_per_worker_hour=images / alone_h if alone_h else None,
        usd=None if price is None else price * hours,
        lost_usd=None if price is None else price * lost,
    )


def _worker_price(pool: NodePoolConfig, config: RunConfig) -> float | None:
    """USD an hour of one worker's share of a node."""
    workers = pool.gpus_per_node or config.train.elastic.workers_per_node
    return None if pool.price_usd_per_hour is None else pool.price_usd_per_hour / workers
