"""Cost of a training: images, time and money; of each node pool, what it worked and what losses cost it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from eosin.config import RunConfig
from eosin.config.cluster import NodePoolConfig
from eosin.summary.training_log import Event, TrainingLog


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
