"""Defaults of a cluster for every run, from the chart's values: pools, secrets, scratch, queue, image."""

from eosin.cluster.api import Cluster, Missing, connect, is_configured
from eosin.config import load_config
from eosin.config.cluster import ClusterConfig
from eosin.config.load import parse_yaml
from eosin.errors import EosinError

CONFIG_MAP = "eosin-cluster"
KEY = "cluster.yaml"
_KUBEFLOW = "kubeflow"
_UNSEEN = "note: what the cluster presets is not looked at from here, the first step does"


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


def defaults_in_reach(namespace: str = "") -> tuple[ClusterConfig, str]:
    """As `load_defaults`, of the cluster that a kubeconfig of this machine names; and why they are not known.

    Without a `namespace` that of the kubeconfig is looked into, then Kubeflow's own. Each call is tried once.
    Raises `UserError` only for presets that no configuration has.
    """
    if not is_configured():
        return ClusterConfig(), f"{_UNSEEN}: no cluster is configured here"
    for name in dict.fromkeys((namespace, namespace or _KUBEFLOW)):
        try:
            cluster = connect(name, attempts=1)
            cluster.get_config_map(CONFIG_MAP)
        except Missing:
            continue
        except EosinError as error:
            return ClusterConfig(), f"{_UNSEEN}: {error.message}"
        return load_defaults(cluster), ""
    return ClusterConfig(), f"{_UNSEEN}: no ConfigMap {CONFIG_MAP} was found"
