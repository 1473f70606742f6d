"""Command lines of the pods, as data: the very ones that tests start as processes."""

import math

from eosin.config import RunConfig
from eosin.config.cluster import RENDEZVOUS, NodePoolConfig

# Kubernetes itself expands $(NAME) in arguments, so no shell stands between it and the agent.
HOST_VARIABLE = "EOSIN_POD_HOST"
ATTEMPT_VARIABLE = "EOSIN_RESTART_ATTEMPT"


def world_nodes(config: RunConfig) -> tuple[int, int]:
    """Fewest and most nodes of the elastic world, summed over the pools."""
    pools = config.cluster.pools
    return sum(pool.min_nodes for pool in pools), sum(pool.max_nodes for pool in pools)


def workers_per_node(config: RunConfig, pool: NodePoolConfig) -> int:
    """Processes of one pod: a worker a GPU, or the configured number where the pool has none."""
    return pool.gpus_per_node or config.train.elastic.workers_per_node


def rendezvous_host(name: str) -> str:
    """DNS name of the store's pod within the namespace; survives the pod."""
    return f"{name}-{RENDEZVOUS}-0-0.{name}"


def rendezvous_command(config: RunConfig) -> list[str]:
    """What the pod of the rendezvous store runs."""
    return ["python", "-m", "eosin.training.elastic.rendezvous", f"--port={config.cluster.rendezvous.port}"]


def watcher_command(config: RunConfig, run_uri: str, name: str) -> list[str]:
    """The container beside the store that ends a training which no run wants any more."""
    timeout_s = config.cluster.unfollowed_timeout_s
    return ["python", "-m", "eosin.cluster.watcher", name, run_uri, f"--unfollowed-timeout={timeout_s}"]


def pod_agent_command(config: RunConfig, run_uri: str, name: str, pool: NodePoolConfig) -> list[str]:
    """One pod's torchrun agent, under the wrapper that stops on what no restart mends."""
    elastic = config.train.elastic
    return [
        "python",
        "-m",
        "eosin.training.elastic.agent",
        f"--max-restarts-without-progress={elastic.max_restarts_without_progress}",
        f"--rendezvous-patience={elastic.rendezvous_patience_s:g}",
        *([f"--hang-timeout={elastic.hang_timeout_s:g}"] if elastic.hang_timeout_s else []),
        *torchrun_flags(config, name, pool),
        "-m",
        "eosin.training.worker",
        run_uri,
    ]


def torchrun_flags(config: RunConfig, name: str, pool: NodePoolConfig) -> list[str]:
    """Flags of torch.distributed.run. `is_host=0` everywhere: the store has a pod of its own."""
    elastic = config.train.elastic
    fewest, most = world_nodes(config)
    # One for each attempt of the JobSet. Pods of a Job of its own know of no attempt, so that all then share
    # one; a new attempt has a new, empty store all the same.
    attempt = "" if config.cluster.spot_as == "elastic-job" else f"-$({ATTEMPT_VARIABLE})"
    rendezvous = ",".join(
        (
            "is_host=0",
            f"join_timeout={math.ceil(elastic.join_timeout_s)}",
            f"last_call_timeout={math.ceil(elastic.last_call_timeout_s)}",
            f"keep_alive_interval={math.ceil(elastic.keep_alive_interval_s)}",
            f"keep_alive_max_attempt={elastic.keep_alive_attempts}",
        )
    )
    return [
        f"--nnodes={fewest}:{most}",
        f"--nproc-per-node={workers_per_node(config, pool)}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={rendezvous_host(name)}:{config.cluster.rendezvous.port}",
        f"--rdzv-id={name}{attempt}",
        f"--rdzv-conf={rendezvous}",
        f"--max-restarts={elastic.max_restarts}",
        f"--local-addr=$({HOST_VARIABLE}).{name}",
        f"--shutdown-timeout={math.ceil(elastic.shutdown_timeout_s)}",
    ]
