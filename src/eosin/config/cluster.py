"""Configuration of the cluster: where the pods run. Nothing here changes what is computed."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eosin.config.base import LABEL_PATTERN, POOL_PATTERN, QUANTITY_PATTERN, Section
from eosin.words import repeated

PoolName = Annotated[str, Field(pattern=POOL_PATTERN)]
Quantity = Annotated[str, Field(pattern=QUANTITY_PATTERN)]
NodeLabel = Annotated[str, Field(pattern=LABEL_PATTERN)]

RENDEZVOUS = "rdzv"
"""Name of the replicated job that holds the rendezvous store; no pool may take it."""


class TolerationConfig(Section):
    """A taint that pods put up with, as Kubernetes has it."""

    key: str = ""
    """Empty: every key."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists: any value; Equal: `value`."""
    value: str = ""
    """Of the taint, with Equal."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Of the taint; empty: every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0)
    """How long a pod stays once a NoExecute taint appears; None: for ever."""

    def manifest(self) -> dict[str, Any]:
        """As it stands in a pod's specification."""
        given = self.model_dump(exclude={"toleration_seconds"})
        seconds = {} if self.toleration_seconds is None else {"tolerationSeconds": self.toleration_seconds}
        return {key: value for key, value in given.items() if value} | seconds


class NodePoolConfig(Section):
    """One kind of node. The first pool is the anchor: it holds the run together and must not be spot."""

    name: PoolName = "anchor"
    """Part of the pods' names; the anchor's must come first in the alphabet."""
    min_nodes: int = Field(default=1, ge=0)
    """Nodes of this pool without which training does not start; 0 unless given for a spot pool.

    They sum up to the world's minimum.
    """
    max_nodes: int = Field(default=1, ge=1)
    """Most nodes of this pool."""
    gpus_per_node: int = Field(default=1, ge=0)
    """Workers a node; 0: no GPU, `train.elastic.workers_per_node` processes on its cores."""
    gpu_resource: str = "nvidia.com/gpu"
    """Resource that a worker takes; a MIG slice is named as the device plugin names it."""
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Of one GPU (an H200 has 139): with it, a model that cannot fit is refused before it is submitted."""
    spot: bool = False
    """May be taken away at any time: lower priority, short tolerations, unlimited replacements."""
    cpu: Quantity = "8"
    """Cores requested for a pod."""
    memory: Quantity = "64Gi"
    """Requested and limit for a pod; includes what lies in /dev/shm."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: tuple[TolerationConfig, ...] = ()
    """Taints that the pods put up with, beside those of GPUs and lost nodes."""
    priority_class: str = ""
    """Empty: `cluster.priority_class`, or `cluster.spot_priority_class` for a spot pool."""
    required_topology: NodeLabel = ""
    """Label of nodes (a block, a rack) of which all pods of the pool must share one value: Kueue admits the
    run once one has room. Needs `cluster.queue` over a Topology."""
    preferred_topology: NodeLabel = ""
    """The same, as a wish: Kueue goes to fewer, closer values where one has no room."""
    exclusive_topology: NodeLabel = ""
    """Label of nodes of which the pool takes one value for itself, by JobSet's exclusive placement (no Kueue
    needed): all its pods are there, and no other pod of any JobSet, the rendezvous included."""
    price_usd_per_hour: float | None = Field(default=None, ge=0)
    """Of one node, for the estimate of `--dry-run`."""

    @model_validator(mode="before")
    @classmethod
    def _spot_is_never_needed(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("spot") is True:
            return {"min_nodes": 0, **data}
        return data

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(
                f"pool {self.name}: min_nodes {self.min_nodes} exceeds max_nodes {self.max_nodes}"
            )
        return self

    @model_validator(mode="after")
    def _asks_for_one_topology(self) -> Self:
        asked = [key for key in ("required", "preferred", "exclusive") if getattr(self, f"{key}_topology")]
        if len(asked) > 1:
            raise ValueError(
                f"pool {self.name}: {' and '.join(f'{key}_topology' for key in asked)}: give one"
            )
        return self


class S3AccessConfig(Section):
    """How pods reach the object store; with none of these the service account's own identity is used."""

    secret: str = ""
    """Existing Secret whose keys become environment variables (AWS_ACCESS_KEY_ID, …)."""
    profiles_secret: str = "eosin-s3-profiles"
    """Existing Secret whose key `credentials` is an AWS shared credentials file: the profiles that sources of
    slides name. Looked for only where one does."""
    endpoint_url: str = ""
    """Of a store that is not AWS; empty: AWS, or what the Secret says."""
    region: str = ""
    """Of the bucket; empty: what the Secret or the node says."""
    ca_config_map: str = ""
    """ConfigMap with a key `ca.crt`, for a store with a certificate of its own authority."""


class ScratchConfig(Section):
    """The volume on which each training pod stages slides."""

    size: Quantity = "200Gi"
    """Of each pod's scratch volume, where slides are staged."""
    storage_class: str = ""
    """Storage class of a volume made for each pod (local NVMe, say); empty: an emptyDir of the node."""


class RendezvousConfig(Section):
    """The pod that holds the rendezvous store, in which agents meet."""

    port: int = Field(default=29400, ge=1024, le=65535)
    """TCP port of the store."""
    cpu: Quantity = "250m"
    """Cores requested for its pod."""
    memory: Quantity = "1Gi"
    """Requested and limit for its pod."""
    node_selector: dict[str, str] = {}
    """Put it on nodes that stay: losing this pod stops every worker for a minute."""
    tolerations: tuple[TolerationConfig, ...] = ()
    """Taints that its pod puts up with."""


class ClusterConfig(Section):
    """Where the pods of a training run, and how they are treated. Nothing here changes what is computed."""

    namespace: str = ""
    """Empty: that of the pod that submits, then that of the kubectl context, then `eosin`."""
    image: str = ""
    """Image of the training pods; empty: EOSIN_TRAIN_IMAGE, then the image of the pod that submits."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a node pulls the image again."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of existing Secrets for a private registry."""
    service_account: str = "eosin-train"
    """Of the training pods: it needs the bucket and nothing of the Kubernetes API."""
    watcher_account: str = "eosin-watcher"
    """Of the rendezvous pod, whose watcher ends a training that its run was terminated for, or that nobody
    follows: it may read Workflows, and read and delete JobSets. Empty: no watcher."""
    unfollowed_timeout_s: int = Field(default=3600, ge=120)
    """How long training goes on, and holds its GPUs, where no launcher follows it; then it saves and ends."""
    s3: S3AccessConfig = S3AccessConfig()
    """How pods reach the object store."""
    pools: tuple[NodePoolConfig, ...] = (NodePoolConfig(),)
    """Kinds of nodes to train on; the first is the anchor."""
    rendezvous: RendezvousConfig = RendezvousConfig()
    """The pod that holds the store in which agents meet."""
    scratch: ScratchConfig = ScratchConfig()
    """The volume of each training pod for staged slides."""
    shm_size: Quantity = "16Gi"
    """Size of /dev/shm of each training pod, part of its `memory`; holds snapshots and batches."""
    priority_class: str = ""
    """Kubernetes PriorityClass of the pods; empty: the cluster's default."""
    spot_priority_class: str = ""
    """The same for pods of spot pools; the lower one, so that they yield."""
    queue: str = ""
    """Kueue LocalQueue; empty: no Kueue."""
    queue_priority_class: str = ""
    """Kueue WorkloadPriorityClass."""
    spot_as: Literal["jobset", "elastic-job"] = "jobset"
    """What the pods of spot pools belong to: the JobSet, or a Job of their own that Kueue admits apart.

    elastic-job needs `queue`, and Kueue with the feature gate ElasticJobsViaWorkloadSlices. No spot pod that
    stays away can then suspend the anchor, whatever `waitForPodsReady.recoveryTimeout` is.
    """
    spot_queue_priority_class: str = ""
    """Kueue WorkloadPriorityClass of those Jobs, lower than `queue_priority_class`."""
    topology_key: str = "topology.kubernetes.io/zone"
    """Pods prefer to share a value of this node label; empty: anywhere."""
    max_restarts: int = Field(default=3, ge=0)
    """Of the whole JobSet, for failures that torchrun itself could not mend."""
    anchor_backoff_limit: int = Field(default=10, ge=0)
    """Failures a node of the anchor before its Job fails; evictions do not count."""
    grace_period_s: int = Field(default=120, ge=1)
    """From SIGTERM to SIGKILL; longer than train.elastic.shutdown_timeout_s and the save after it."""
    lost_node_toleration_s: int = Field(default=30, ge=0)
    """How long a spot pod stays bound to a node that no longer answers."""
    stuck_timeout_s: int = Field(default=900, gt=0)
    """How long a pod may wait for an image or a Secret that cannot be had, or training for a queue that is
    not there or can never hold it, before it is given up. A queue that is held is waited for."""
    ttl_s: int | None = Field(default=7 * 86400, ge=0)
    """A finished JobSet is removed after so long; the run in the bucket stays."""
    env: dict[str, str] = {}
    """Further environment variables of every training container."""

    @model_validator(mode="after")
    def _pools_fit(self) -> Self:
        if not self.pools:
            raise ValueError("pools needs at least one node pool")
        names = [pool.name for pool in self.pools]
        if twice := repeated(names):
            raise ValueError(f"two pools share a name: {twice}")
        if RENDEZVOUS in names:
            raise ValueError(f"no pool may be named {RENDEZVOUS}: that is the rendezvous pod's own name")
        self._check_anchor()
        return self

    def _check_anchor(self) -> None:
        anchor = self.pools[0]
        if len(self.pools) > 1 and anchor.spot:
            raise ValueError(f"the first pool ({anchor.name}) is the anchor: list an on-demand pool first")
        if anchor.min_nodes < 1:
            raise ValueError(
                f"the first pool ({anchor.name}) is the anchor and needs min_nodes of at least 1"
            )
        alike = [pool.name for pool in self.pools[1:] if pool.name.startswith(f"{anchor.name}-")]
        if alike:
            raise ValueError(f"pool {alike[0]} begins with the anchor's name {anchor.name}-: rename one")
        # torchrun gives rank 0 to the lowest-sorting address, and rank 0 is what saves.
        before = [pool.name for pool in self.pools[1:] if pool.name < anchor.name]
        if before:
            raise ValueError(
                f"pool {before[0]} sorts before the anchor {anchor.name} and would hold rank 0: "
                "rename one so that the anchor's name comes first in the alphabet"
            )


OptionalQuantity = Annotated[
    str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?)?$", coerce_numbers_to_str=True)
]


class TaskPodConfig(Section):
    """One kind of task, such as evaluate. What is not given is left to the cluster."""

    gpus: int = Field(default=0, ge=0)
    """How many of `gpu_resource` each pod takes; with any, the taint nvidia.com/gpu is tolerated."""
    gpu_resource: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """A whole GPU, a MIG slice or a time slice, as the device plugin names it."""
    cpu: OptionalQuantity = ""
    """Cores requested."""
    memory: OptionalQuantity = ""
    """Requested and limit; includes what lies in /dev/shm."""
    shm_size: OptionalQuantity = ""
    """Size of /dev/shm; empty: the container runtime's, usually 64 MB."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: tuple[TolerationConfig, ...] = ()
    """Taints that the pods put up with."""
