"""Where the pods run. Nothing here changes what is computed."""

from __future__ import annotations

from pydantic import Field

from eosin.config.base import Section


class NodePoolConfig(Section):
    name: str = "anchor"
    min_nodes: int = Field(default=1, ge=0)
    max_nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=1, ge=0)
    node_selector: dict[str, str] = {}
    price_usd_per_hour: float | None = None


class ClusterConfig(Section):
    namespace: str = "eosin"
    image: str = ""
    pools: tuple[NodePoolConfig, ...] = (NodePoolConfig(),)
