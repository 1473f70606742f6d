"""Pod templates: containers, volumes and security, the restricted Pod Security standard throughout."""

from typing import Any

from eosin.cluster import commands, names
from eosin.config import RunConfig
from eosin.config.cluster import ClusterConfig, NodePoolConfig

Manifest = dict[str, Any]

METRICS_PORT = 9464
SCRATCH = "/scratch"
_CA_DIR = "/etc/eosin/ca"
_PROFILES_DIR = "/etc/eosin/aws"
_USER_ID = 10001


def agent_pod(config: RunConfig, run_uri: str, name: str, pool: NodePoolConfig, *, image: str) -> Manifest:
    """Pod template of one torchrun agent on a node of `pool`."""
    cluster = config.cluster
    container = _agent_container(config, run_uri, name, pool, image)
    volumes: list[Manifest] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm_size}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "scratch", **_scratch_source(cluster)},
    ]
    _give_store(cluster, container, volumes)
    if _names_profiles(config):
        container["volumeMounts"].append({"name": "profiles", "mountPath": _PROFILES_DIR, "readOnly": True})
        volumes.append({"name": "profiles", "secret": {"secretName": cluster.s3.profiles_secret}})
    spec = _base_spec(cluster)
    spec |= {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.grace_period_s,
        "containers": [container],
        "volumes": volumes,
        "nodeSelector": dict(pool.node_selector),
        "tolerations": _tolerations(cluster, pool),
    }
    priority_class = pool.priority_class or (
        cluster.spot_priority_class if pool.spot else cluster.priority_class
    )
    if priority_class:
        spec["priorityClassName"] = priority_class
    if cluster.topology_key:
        spec["affinity"] = _near_each_other(name, cluster.topology_key)
    template = _template(name, spec)
    topology = {
        names.REQUIRED_TOPOLOGY_ANNOTATION: pool.required_topology,
        names.PREFERRED_TOPOLOGY_ANNOTATION: pool.preferred_topology,
    }
    if asked := {annotation: label for annotation, label in topology.items() if label}:
        template["metadata"]["annotations"] = asked
    return template


def rendezvous_pod(config: RunConfig, run_uri: str, name: str, *, image: str) -> Manifest:
    """Pod template of the small CPU pod that holds the rendezvous store."""
    cluster = config.cluster
    place = cluster.rendezvous
    variables = {"EOSIN_IN_POD": "1", "EOSIN_LOG": "json", "HOME": "/tmp"}
    command, sizes = commands.rendezvous_command(config), (place.cpu, place.memory, place.memory)
    container = _small_container(cluster, names.RENDEZVOUS_CONTAINER, image, command, variables, sizes) | {
        "ports": [{"name": names.RENDEZVOUS_CONTAINER, "containerPort": place.port, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": place.port}, "periodSeconds": 2, "failureThreshold": 3},
    }
    spec = _base_spec(cluster)
    spec |= {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
        "nodeSelector": dict(place.node_selector),
        "tolerations": [toleration.manifest() for toleration in place.tolerations],
    }
    if cluster.watcher_account:
        # The only pod of a training that speaks to the Kubernetes API, with an account of its own for it.
        spec |= {"serviceAccountName": cluster.watcher_account, "automountServiceAccountToken": True}
        command, sizes = commands.watcher_command(config, run_uri, name), ("50m", "128Mi", "512Mi")
        variables = {"EOSIN_LOG": "json", "HOME": "/tmp", **_store_variables(cluster)}
        watcher = _small_container(cluster, names.WATCHER_CONTAINER, image, command, variables, sizes)
        _give_store(cluster, watcher, spec["volumes"])
        spec["containers"].append(watcher)
    if cluster.priority_class:
        spec["priorityClassName"] = cluster.priority_class
    return _template(name, spec)


def _small_container(
    cluster: ClusterConfig, name: str, image: str, command: list[str], variables: dict[str, str],
    sizes: tuple[str, str, str],
) -> Manifest:  # fmt: skip
    """One without a GPU that writes to /tmp alone; `sizes`: cores and memory requested, memory at most."""
    cpu, memory, most_memory = sizes
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": cluster.image_pull_policy,
        "command": command,
        "env": _variables(variables),
        "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": most_memory}},
        "securityContext": _container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def doctor_pod(cluster: ClusterConfig, name: str, uri: str, *, image: str) -> Manifest:
    """A pod that tries the store at `uri` as a training pod would reach it, and asks for no GPU."""
    command = ["python", "-m", "eosin", "doctor", "--uri", uri, "--json"]
    variables = {"HOME": "/tmp", **_store_variables(cluster), **cluster.env}
    container = _small_container(cluster, "doctor", image, command, variables, ("250m", "1Gi", "4Gi"))
    spec = _base_spec(cluster)
    spec |= {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 600,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
        "nodeSelector": dict(cluster.rendezvous.node_selector),
        "tolerations": [toleration.manifest() for toleration in cluster.rendezvous.tolerations],
    }
    _give_store(cluster, container, spec["volumes"])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": names.labels(name)},
        "spec": spec,
    }


def _give_store(cluster: ClusterConfig, container: Manifest, volumes: list[Manifest]) -> None:
    """Keys and authority of the bucket, beside the variables that every container has."""
    if cluster.s3.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.s3.secret}}]
    if cluster.s3.ca_config_map:
        container["volumeMounts"].append({"name": "ca", "mountPath": _CA_DIR, "readOnly": True})
        volumes.append({"name": "ca", "configMap": {"name": cluster.s3.ca_config_map}})


def _template(name: str, spec: Manifest) -> Manifest:
    return {"metadata": {"labels": names.labels(name)}, "spec": spec}


def _base_spec(cluster: ClusterConfig) -> Manifest:
    return {
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "imagePullSecrets": [{"name": secret} for secret in cluster.image_pull_secrets],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _agent_container(
    config: RunConfig, run_uri: str, name: str, pool: NodePoolConfig, image: str
) -> Manifest:
    cluster = config.cluster
    return {
        "name": names.CONTAINER,
        "image": image,
        "imagePullPolicy": cluster.image_pull_policy,
        "command": commands.pod_agent_command(config, run_uri, name, pool),
        "env": _agent_environment(cluster, pool, _names_profiles(config)),
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "resources": _resources(pool),
        "securityContext": _container_security(),
        "volumeMounts": _mounts(config),
    }


def _resources(pool: NodePoolConfig) -> Manifest:
    gpus = {pool.gpu_resource: pool.gpus_per_node} if pool.gpus_per_node else {}
    return {
        "requests": {"cpu": pool.cpu, "memory": pool.memory, **gpus},
        "limits": {"memory": pool.memory, **gpus},
    }


def _agent_environment(cluster: ClusterConfig, pool: NodePoolConfig, profiles: bool) -> list[Manifest]:
    """Downward-API variables first: the ones after them may refer to them as $(NAME)."""
    values = {
        commands.HOST_VARIABLE: "$(EOSIN_JOB_NAME)-$(EOSIN_JOB_INDEX)",
        "EOSIN_IN_POD": "1",
        "EOSIN_LOG": "json",
        "EOSIN_NODE_POOL": pool.name,
        "EOSIN_METRICS_PORT": str(METRICS_PORT),
        # Sharing the agents' store with the workers hangs the survivors when an agent is lost.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "HOME": "/tmp",
        "TMPDIR": SCRATCH,
        "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH}/inductor",
        **_store_variables(cluster),
        **({"AWS_SHARED_CREDENTIALS_FILE": f"{_PROFILES_DIR}/credentials"} if profiles else {}),
        **cluster.env,
    }
    fields = {
        "EOSIN_JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
        "EOSIN_JOB_INDEX": "metadata.labels['batch.kubernetes.io/job-completion-index']",
        commands.ATTEMPT_VARIABLE: f"metadata.labels['{names.RESTART_ATTEMPT_LABEL}']",
        "EOSIN_POD_NAME": "metadata.name",
        "EOSIN_NODE_NAME": "spec.nodeName",
    }
    downward = [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()]
    return [*downward, *_variables(values)]


def _store_variables(cluster: ClusterConfig) -> dict[str, str]:
    values = {"AWS_ENDPOINT_URL": cluster.s3.endpoint_url, "AWS_REGION": cluster.s3.region}
    if cluster.s3.ca_config_map:
        values["AWS_CA_BUNDLE"] = f"{_CA_DIR}/ca.crt"
    return {key: value for key, value in values.items() if value}


def _variables(values: dict[str, str]) -> list[Manifest]:
    return [{"name": key, "value": value} for key, value in values.items()]


def _mounts(config: RunConfig) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "scratch", "mountPath": SCRATCH},
    ]
    stage_dir = config.patches.stage_dir
    if stage_dir and stage_dir != SCRATCH and not stage_dir.startswith(f"{SCRATCH}/"):
        mounts.append({"name": "scratch", "mountPath": stage_dir, "subPath": "stage"})
    return mounts


def _names_profiles(config: RunConfig) -> bool:
    """Whether a source of slides is read with credentials of its own."""
    return any(source.profile for source in config.slides.sources)


def _scratch_source(cluster: ClusterConfig) -> Manifest:
    scratch = cluster.scratch
    if not scratch.storage_class:
        return {"emptyDir": {"sizeLimit": scratch.size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": scratch.storage_class,
        "resources": {"requests": {"storage": scratch.size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _tolerations(cluster: ClusterConfig, pool: NodePoolConfig) -> list[Manifest]:
    tolerations = [toleration.manifest() for toleration in pool.tolerations]
    if pool.gpus_per_node:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if pool.spot:
        tolerations += [
            {
                "key": f"node.kubernetes.io/{state}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": cluster.lost_node_toleration_s,
            }
            for state in ("not-ready", "unreachable")
        ]
    return tolerations


def _near_each_other(name: str, topology_key: str) -> Manifest:
    term = {"labelSelector": {"matchLabels": {names.JOBSET_NAME_LABEL: name}}, "topologyKey": topology_key}
    return {
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "podAffinityTerm": term}]
        }
    }
