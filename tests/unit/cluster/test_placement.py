"""The dry run's nodes, GPUs and money."""

from eosin.config import load_config
from eosin.preflight import compare_pools


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
    lines = {name: line.partition(";")[0] for name, line in compare_pools(config, "/nowhere/run").items()}
    assert lines == {
        "pool anchor": "2–3 nodes (on demand), 16–24 GPUs, 16–24 workers, 21–31.5 USD an hour",
        "pool cpu": "1 node (on demand), 0 GPUs, 3 workers, 0 USD an hour",
        "pool spot": "0–4 nodes (spot), 0–8 GPUs, 0–8 workers",
    }
