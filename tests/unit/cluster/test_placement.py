"""The dry run's nodes, GPUs and money."""

from __future__ import annotations

from eosin.cluster.placement import PoolPlacement, placement
from eosin.config import load_config


def test_pools_from_their_smallest_to_their_largest() -> None:
    config = load_config(
        """
        train: {elastic: {workers_per_node: 3}}
        cluster:
          pools:
          - {name: anchor, min_nodes: 2, max_nodes: 3, gpus_per_node: 8, price_usd_per_hour: 10.5}
          - {name: cpu, min_nodes: 1, max_nodes: 1, gpus_per_node: 0, price_usd_per_hour: 0}
          - {name: spot, spot: true, max_nodes: 4, gpus_per_node: 2}
        """
    )
    assert placement(config) == [
        PoolPlacement("anchor", False, (2, 3), (16, 24), (16, 24), (21.0, 31.5)),
        PoolPlacement("cpu", False, (1, 1), (0, 0), (3, 3), (0.0, 0.0)),
        PoolPlacement("spot", True, (0, 4), (0, 8), (0, 8), None),
    ]
