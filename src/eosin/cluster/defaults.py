"""Defaults of a cluster for every run, from the chart's values: pools, secrets, scratch, queue, image."""

from __future__ import annotations

from eosin.cluster.api import Cluster, Missing
from eosin.config import load_config
from eosin.config.cluster import ClusterConfig
from eosin.config.yaml_text import parse_yaml

CONFIG_MAP = "eosin-cluster"
KEY = "cluster.yaml"


def with_defaults(config: ClusterConfig, defaults: ClusterConfig) -> ClusterConfig:
    """`config`, with the cluster's value for every key that the run leaves at its default."""
    untouched = {
        name: getattr(defaults, name)
        for name, field in ClusterConfig.model_fields.items()
        if getattr(config, name) == field.get_default(call_default_factory=True)
    }
    return config.model_copy(update=untouched)


def load_defaults(cluster: Cluster) -> ClusterConfig:
    """The ConfigMap `eosin-cluster` of the namespace; eosin's own defaults where there is none.

    Raises `UserError` where it may not be read, since pools and queue would silently be others; and one that
    names the key where it holds what no configuration has.
    """
    try:
        text = cluster.get_config_map(CONFIG_MAP).get(KEY, "")
    except Missing:
        return ClusterConfig()
    source = f"ConfigMap {cluster.namespace}/{CONFIG_MAP}"
    return load_config({"cluster": parse_yaml(text, f"{source}: {KEY}") or {}}, source=source).cluster
