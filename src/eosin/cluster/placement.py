"""Placement of a training, before it is submitted: nodes, GPUs and money an hour of each pool."""

from __future__ import annotations

from dataclasses import dataclass

from eosin.cluster.commands import workers_per_node
from eosin.config import RunConfig


@dataclass(frozen=True)
class PoolPlacement:
    """One pool at its smallest and at its largest."""

    pool: str
    spot: bool
    nodes: tuple[int, int]
    gpus: tuple[int, int]
    workers: tuple[int, int]
    usd_per_hour: tuple[float, float] | None
    """None where the pool has no price."""

    def __str__(self) -> str:
        kind = "spot" if self.spot else "on demand"
        parts = [f"{_range(self.nodes)} nodes ({kind})", f"{_range(self.gpus)} GPUs"]
        parts += [f"{_range(self.workers)} workers"]
        if self.usd_per_hour is not None:
            parts.append(f"{_range(self.usd_per_hour)} USD an hour")
        return ", ".join(parts)


def placement(config: RunConfig) -> list[PoolPlacement]:
    """Every pool of `config.cluster` in its order, from `min_nodes` to `max_nodes`."""
    placed = []
    for pool in config.cluster.pools:
        nodes = (pool.min_nodes, pool.max_nodes)
        workers = workers_per_node(config, pool)
        price = pool.price_usd_per_hour
        placed.append(
            PoolPlacement(
                pool=pool.name,
                spot=pool.spot,
                nodes=nodes,
                gpus=(nodes[0] * pool.gpus_per_node, nodes[1] * pool.gpus_per_node),
                workers=(nodes[0] * workers, nodes[1] * workers),
                usd_per_hour=None if price is None else (nodes[0] * price, nodes[1] * price),
            )
        )
    return placed


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:g}" for end in ends)
    return low if low == high else f"{low}–{high}"
