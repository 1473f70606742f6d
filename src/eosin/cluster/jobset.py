"""Rendering of a run's configuration as a JobSet: pure functions, the same bytes every time."""

from eosin.cluster import commands, names
from eosin.cluster.names import OwnerReference, jobset_name
from eosin.cluster.pods import Manifest, agent_pod, rendezvous_pod
from eosin.config import RunConfig
from eosin.config.cluster import RENDEZVOUS, NodePoolConfig
from eosin.errors import EXIT_CONFIGURATION_IN_POD, EXIT_PERMANENT_IN_POD, UserError

UNLIMITED = 2**31 - 1
_RENDEZVOUS_BACKOFF_LIMIT = 1000
_TIME_TO_SAVE_S = 30


def render_jobset(
    config: RunConfig,
    run_uri: str,
    *,
    image: str,
    namespace: str = "",
    owner: OwnerReference | None = None,
) -> Manifest:
    """The JobSet that trains `run_uri`: a rendezvous pod, the anchor pool, one job for each further pool.

    `namespace` defaults to that of `config.cluster`. Every pod is one torchrun agent; the world is elastic
    between the pools' summed minima and maxima. Losing a pod of any pool shrinks the world, and its
    replacement grows it again, without a restart of the JobSet.

    Raises `UserError` where the configuration cannot work on a cluster (`check_cluster_config`).
    """
    check_cluster_config(config, run_uri, image)
    cluster = config.cluster
    name = jobset_name(run_uri)
    rendezvous = rendezvous_pod(config, run_uri, name, image=image)
    jobs = [_replicated_job(RENDEZVOUS, _indexed_job(rendezvous, 1, _RENDEZVOUS_BACKOFF_LIMIT, {}))]
    for job, pool, num_pods, is_anchor in _shares(config):
        pod = agent_pod(config, run_uri, name, pool, image=image)
        backoff_limit = cluster.anchor_backoff_limit * num_pods if is_anchor else UNLIMITED
        made = _replicated_job(job, agent_job(pod, num_pods, backoff_limit), after=RENDEZVOUS)
        if pool.exclusive_topology:  # JobSet copies it to the Job and its pods
            annotations = {names.EXCLUSIVE_TOPOLOGY_ANNOTATION: pool.exclusive_topology}
            made["template"]["metadata"] = {"annotations": annotations}
        jobs.append(made)
    return {
        "apiVersion": names.JOBSET.api_version,
        "kind": "JobSet",
        "metadata": _metadata(config, run_uri, name, namespace, owner),
        "spec": _spec(config, jobs),
    }


def render_disruption_budget(
    config: RunConfig, run_uri: str, *, namespace: str = "", owner: OwnerReference | None = None
) -> Manifest:
    """A PodDisruptionBudget that keeps drains off the anchor pool; spot pools stay free to go."""
    name = jobset_name(run_uri)
    anchor = config.cluster.pools[0]
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(config, run_uri, name, namespace, owner) | {"labels": names.labels(name)},
        "spec": {
            "minAvailable": anchor.min_nodes,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {
                "matchLabels": {names.JOBSET_NAME_LABEL: name, names.REPLICATED_JOB_LABEL: anchor.name}
            },
        },
    }


def check_cluster_config(config: RunConfig, run_uri: str, image: str) -> None:
    """Refuse what could only fail after GPUs were taken. Raises `UserError`."""
    if not image:
        raise UserError(
            "no image for the training pods",
            hint="set cluster.image, or EOSIN_TRAIN_IMAGE, to an image@sha256:… that `make publish` pushed",
        )
    if not run_uri.startswith("s3://"):
        raise UserError(
            f"pods on a cluster cannot reach {run_uri}",
            hint="take a run URI of the form s3://bucket/runs/NAME",
        )
    needed_s = config.train.elastic.shutdown_timeout_s + _TIME_TO_SAVE_S
    if config.cluster.grace_period_s < needed_s:
        raise UserError(
            f"cluster.grace_period_s {config.cluster.grace_period_s} is shorter than "
            f"train.elastic.shutdown_timeout_s plus {_TIME_TO_SAVE_S} s to save",
            hint=f"set cluster.grace_period_s to at least {needed_s:.0f}",
        )
    if config.cluster.spot_as == "elastic-job" and not config.cluster.queue:
        raise UserError(
            "cluster.spot_as: elastic-job is for Kueue, and no queue is named", hint="set cluster.queue"
        )
    for pool in config.cluster.pools:
        _check_topology(config, pool)
    _check_slots(config)


def _check_topology(config: RunConfig, pool: NodePoolConfig) -> None:
    """What nobody would heed is refused."""
    if (pool.required_topology or pool.preferred_topology) and not config.cluster.queue:
        raise UserError(
            f"pool {pool.name} asks Kueue for a topology, and no queue is named",
            hint="set cluster.queue; without Kueue there is exclusive_topology",
        )
    topologies = (pool.required_topology, pool.preferred_topology, pool.exclusive_topology)
    if pool in spot_job_pools(config) and any(topologies):
        raise UserError(
            f"pool {pool.name} asks for a topology, and its pods are a Job of their own (cluster.spot_as:"
            " elastic-job): Kueue refuses required and preferred ones there, and exclusive ones are JobSet's",
            hint="leave it out, or set cluster.spot_as: jobset",
        )
    if pool.exclusive_topology and pool.max_nodes > pool.min_nodes > 0 and pool == config.cluster.pools[0]:
        raise UserError(
            f"pool {pool.name}: exclusive_topology keeps its {pool.min_nodes} nodes and the "
            f"{pool.max_nodes - pool.min_nodes} beyond them apart: they are two Jobs",
            hint="give the anchor as many min_nodes as max_nodes",
        )


def _check_slots(config: RunConfig) -> None:
    most_workers = sum(
        pool.max_nodes * commands.workers_per_node(config, pool) for pool in config.cluster.pools
    )
    if config.train.num_microbatches < most_workers:
        raise UserError(
            f"{most_workers} workers share only {config.train.num_microbatches} microbatches: some would"
            " idle",
            hint=f"set train.num_microbatches to at least {most_workers} (four a worker is wise), or fewer"
            " nodes",
        )


def _shares(config: RunConfig) -> list[tuple[str, NodePoolConfig, int, bool]]:
    """(replicated job, pool, pods, is the anchor). What the anchor's pool has beyond its minimum is a
    job of its own, so that the run can end and go on without it."""
    anchor, *others = config.cluster.pools
    shares = [(anchor.name, anchor, anchor.min_nodes, True)]
    if anchor.max_nodes > anchor.min_nodes:
        shares.append((f"{anchor.name}-more", anchor, anchor.max_nodes - anchor.min_nodes, False))
    apart = spot_job_pools(config)
    shares += [(pool.name, pool, pool.max_nodes, False) for pool in others if pool not in apart]
    return shares


def _metadata(
    config: RunConfig, run_uri: str, name: str, namespace: str, owner: OwnerReference | None
) -> Manifest:
    cluster = config.cluster
    labels = names.labels(name)
    labels |= queue_labels(cluster.queue, cluster.queue_priority_class)
    annotations = {names.RUN_ANNOTATION: run_uri, names.CONFIG_ANNOTATION: config.digest()}
    if apart := spot_job_pools(config):
        annotations[names.SPOT_JOBS_ANNOTATION] = ",".join(f"{name}-{pool.name}" for pool in apart)
    metadata: Manifest = {
        "name": name,
        "namespace": namespace or cluster.namespace or "eosin",
        "labels": labels,
        "annotations": annotations,
    }
    if owner is not None:
        metadata["ownerReferences"] = [owner.manifest()]
    return metadata


def queue_labels(queue: str, priority_class: str) -> dict[str, str]:
    """What tells Kueue where a workload queues and how important it is."""
    labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority_class}
    return {key: value for key, value in labels.items() if value}


def spot_job_pools(config: RunConfig) -> list[NodePoolConfig]:
    """Pools whose pods are a Job of their own; the anchor's never is."""
    apart = config.cluster.spot_as == "elastic-job"
    return [pool for pool in config.cluster.pools[1:] if apart and pool.spot]


def _spec(config: RunConfig, jobs: list[Manifest]) -> Manifest:
    spec: Manifest = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All", "targetReplicatedJobs": [config.cluster.pools[0].name]},
        "failurePolicy": {
            "maxRestarts": config.cluster.max_restarts,
            "rules": [
                {"name": "noRetryMends", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
            ],
        },
        "replicatedJobs": jobs,
    }
    if config.cluster.ttl_s is not None:
        spec["ttlSecondsAfterFinished"] = config.cluster.ttl_s
    return spec


def _replicated_job(name: str, job: Manifest, *, after: str = "") -> Manifest:
    manifest: Manifest = {"name": name, "replicas": 1, "template": {"spec": job}}
    if after:
        manifest["dependsOn"] = [{"name": after, "status": "Ready"}]
    return manifest


def agent_job(pod: Manifest, num_pods: int, backoff_limit: int) -> Manifest:
    """The spec of a Job of agents: what no retry mends fails it at once, an eviction costs it nothing."""
    stop = {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": names.CONTAINER,
            "operator": "In",
            "values": [EXIT_CONFIGURATION_IN_POD, EXIT_PERMANENT_IN_POD],
        },
    }
    forgive = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    rules = {"podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [stop, forgive]}}
    return _indexed_job(pod, num_pods, backoff_limit, rules)


def _indexed_job(pod: Manifest, num_pods: int, backoff_limit: int, rules: Manifest) -> Manifest:
    return {
        "completionMode": "Indexed",
        "parallelism": num_pods,
        "completions": num_pods,
        "backoffLimit": backoff_limit,
        **rules,
        "template": pod,
    }
