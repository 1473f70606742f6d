"""Checks of a cluster: APIs, permissions, references, queue, nodes, quota, store, each with its fix."""

import contextlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import yaml

from eosin.cluster import names, queue
from eosin.cluster.api import Cluster, Manifest, Missing, connect, inside_a_pod
from eosin.cluster.defaults import CONFIG_MAP, load_defaults
from eosin.cluster.failure import stuck_pods
from eosin.cluster.pods import doctor_pod
from eosin.config.cluster import ClusterConfig, NodePoolConfig
from eosin.errors import Check, EosinError, UserError

_TIMEOUT_S = 180.0
_POLL_S = 2.0
_LOG_LINES = 400
_NAME = "S3 from inside"
_ELSE = "`helm test RELEASE --logs` tries the same with the chart's own pod"


def check_store_from_inside(
    cluster: Cluster,
    config: ClusterConfig,
    uri: str,
    *,
    image: str,
    sleep: Callable[[float], None] = time.sleep,
    timeout_s: float = _TIMEOUT_S,
) -> list[Check]:
    """What `eosin doctor --uri` finds in a pod with the image, account, secret and network of training.

    The pod asks for no GPU and is deleted in any case. Never raises for what it finds.
    """
    if not image:
        return [Check(_NAME, "warn", "no image is known for a pod that tries it", _ELSE)]
    name = f"eosin-doctor-{secrets.token_hex(4)}"
    pod = doctor_pod(config, name, uri, image=image)
    core = cluster.core
    try:
        cluster.read(f"creating pod {name}", core.create_namespaced_pod, cluster.namespace, pod)
    except (EosinError, Missing) as error:
        return [Check(_NAME, "warn", f"cannot be tried: {error}", _ELSE)]
    try:
        return _findings(cluster, name, sleep, timeout_s)
    except (EosinError, Missing) as error:
        return [Check(_NAME, "warn", f"cannot be followed: {error}", _ELSE)]
    finally:
        with contextlib.suppress(EosinError, Missing):  # its own time limit ends it
            cluster.read(f"deleting pod {name}", core.delete_namespaced_pod, name, cluster.namespace)


def _findings(cluster: Cluster, name: str, sleep: Callable[[float], None], timeout_s: float) -> list[Check]:
    pod: Manifest = {}
    for _ in range(max(int(timeout_s / _POLL_S), 1)):
        pod = cluster.get_pod(name)
        if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            return _said(cluster.pod_log(name, "doctor", tail_lines=_LOG_LINES))
        if stuck := stuck_pods([pod]):
            fix = "check the image, its pull secrets, cluster.s3.secret and cluster.s3.ca_config_map"
            return [Check(_NAME, "fail", f"its pod cannot start: {stuck[name]}", fix)]
        sleep(_POLL_S)
    phase = pod.get("status", {}).get("phase", "Unknown")
    detail = f"its pod is still {phase} after {timeout_s:.0f} s"
    return [Check(_NAME, "warn", detail, "is a node free? has it pulled the image? try again")]


def _said(lines: list[str]) -> list[Check]:
    """The findings about the store in what `eosin doctor --json` printed."""
    told: list[Manifest] = []
    for line in lines:
        try:
            found = json.loads(line)["checks"] if line.startswith("{") else []
            told += [check for check in found if check["name"].startswith(("store", "S3"))]
        except (ValueError, KeyError, TypeError):
            continue
    if not told:
        last = lines[-1].strip() if lines else "it printed nothing"
        return [
            Check(
                _NAME,
                "fail",
                f"its pod ended without an answer: {last}",
                "is it the image that `make publish` pushed?",
            )
        ]
    return [
        Check(f"inside: {check['name']}", check["status"], check["detail"], check.get("fix", ""))
        for check in told
    ]


_PREREQUISITES = "kubectl apply --server-side -k manifests/prerequisites"
# (API, how to get it)
_APIS = (
    (names.JOBSET, _PREREQUISITES),
    (names.WORKFLOW, "install Kubeflow Pipelines 2.17; `eosin train` needs none"),
    (
        names.Resource(queue.GROUP, "v1beta2", "localqueues", "LocalQueue"),
        "manifests/prerequisites/kueue-values.yaml says how",
    ),
)

# Everything the launcher does, and nothing else (group, resource, verbs, the one object or any): the
# chart's Role grants exactly these.
LAUNCHER_PERMISSIONS = (
    (names.JOBSET.group, "jobsets", ("create", "get", "list", "watch", "patch", "delete"), ""),
    ("batch", "jobs", ("create", "get", "delete"), ""),
    ("policy", "poddisruptionbudgets", ("create",), ""),
    ("", "pods", ("get", "list"), ""),
    ("", "pods/log", ("get",), ""),
    ("", "events", ("list",), ""),
    ("", "configmaps", ("get",), CONFIG_MAP),
    ("argoproj.io", "workflows", ("get",), ""),
    (queue.GROUP, "localqueues", ("get",), ""),
    (queue.GROUP, "workloads", ("list",), ""),
)
# What the watcher in the rendezvous pod does, and nothing else; the chart's second Role grants exactly these.
WATCHER_PERMISSIONS = (
    (names.JOBSET.group, "jobsets", ("get", "delete"), ""),
    ("argoproj.io", "workflows", ("get",), ""),
)
_TESTED_MINOR = 29
_KUBEFLOW = "kubeflow"
_ARGO_CONFIG_MAP = "workflow-controller-configmap"
_NOT_TRIED_AGAIN = (
    "a step that ends with an error, or is evicted, ends the run. eosin waits out what passes by itself; "
    "`eosin resume RUN` goes on after the rest"
)
_RETRY_CURE = (
    f"kubectl -n {_KUBEFLOW} get cm {_ARGO_CONFIG_MAP} -o yaml "
    "| sed 's/retryPolicy: OnError/retryPolicy: Always/' | kubectl apply -f -"
)


def run_cluster_checks(
    config: ClusterConfig | None = None, *, cluster: Cluster | None = None, uri: str = ""
) -> list[Check]:
    """Check API, CRDs, permissions, what pods refer to, queue, nodes of each pool, quota and, from a pod of
    its own where this is none, the store at `uri`; in the order one needs them.

    `config` defaults to what the chart presets on this cluster. Never raises for what it finds; where the
    API cannot be reached, that is the only check.
    """
    try:
        cluster = cluster or connect(config.namespace if config else "")
        checks = [_check_version(cluster)]
    except EosinError as error:
        return [Check("kubernetes API", "fail", error.message, error.hint)]
    if config is None:
        config, defaults = _defaults(cluster)
        checks.append(defaults)
    groups: tuple[Callable[[Cluster, ClusterConfig], Iterator[Check]], ...] = (
        _check_apis,
        _check_permissions,
        _check_references,
        _check_queue,
        _check_retries,
        _check_nodes,
        _check_quota,
    )
    for group in groups:
        checks += _guarded(group, cluster, config)
    if uri and not inside_a_pod():
        image = config.image or os.environ.get("EOSIN_TRAIN_IMAGE", "")
        checks += check_store_from_inside(cluster, config, uri, image=image)
    return checks


def _defaults(cluster: Cluster) -> tuple[ClusterConfig, Check]:
    """What the chart presets, and whether it can be read."""
    name = f"ConfigMap {CONFIG_MAP}"
    try:
        section = load_defaults(cluster)
    except EosinError as error:
        return ClusterConfig(), Check(name, "fail", error.message, "correct the chart's value `cluster`")
    if section == ClusterConfig():
        fix = "helm install eosin … in this namespace, or name another with kubectl's context"
        return section, Check(name, "warn", f"none in namespace {cluster.namespace}", fix)
    pools = ", ".join(pool.name for pool in section.pools)
    return section, Check(name, "ok", f"presets pools {pools}")


def _guarded(
    group: Callable[[Cluster, ClusterConfig], Iterator[Check]], cluster: Cluster, config: ClusterConfig
) -> list[Check]:
    """What may not be read was not checked: a failure where a launcher needs it, else a warning."""
    try:
        return list(group(cluster, config))
    except (EosinError, Missing) as error:
        name = group.__name__.removeprefix("_check_")
        message = error.message if isinstance(error, EosinError) else str(error)
        status: Literal["warn", "fail"] = "fail" if group in _NEEDED else "warn"
        fix = "bind the chart's launcher Role to this service account (values: launcher.serviceAccounts)"
        return [Check(name, status, f"not checked: {message}", fix)]


def _check_version(cluster: Cluster) -> Check:
    version = cluster.server_version()
    minor = int("".join(digit for digit in version.split(".")[1] if digit.isdigit()) or 0)
    detail = f"{version}, namespace {cluster.namespace}"
    if minor < _TESTED_MINOR:
        fix = f"JobSet and pod failure policies want 1.{_TESTED_MINOR} or newer"
        return Check("kubernetes API", "warn", detail, fix)
    return Check("kubernetes API", "ok", detail)


def _check_apis(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    """By discovery, which every account may ask."""
    for resource, fix in _APIS:
        if resource.group == queue.GROUP and not config.queue:
            continue
        name = f"API {resource.plural}"
        if resource.plural in cluster.served(resource):
            yield Check(name, "ok", f"serves {resource.version}")
        else:
            lacking: Literal["warn", "fail"] = "warn" if resource == names.WORKFLOW else "fail"
            yield Check(name, lacking, f"{resource.api_version} is not installed", fix)


def _check_permissions(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    for group, resource, verbs, name in LAUNCHER_PERMISSIONS:
        lacking = [verb for verb in verbs if not cluster.can_i(verb, group, resource, name)]
        if lacking:
            fix = "bind the chart's launcher Role to this service account (values: launcher.serviceAccounts)"
            yield Check(f"may {resource}", "fail", f"may not {', '.join(lacking)} {resource}", fix)
        else:
            yield Check(f"may {resource}", "ok", ", ".join(verbs))


def _check_references(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    """What the pods name must be there; whoever may not look, such as the launcher, is not told."""
    core, s3 = cluster.core, config.s3
    named = [("serviceaccounts", core.read_namespaced_service_account, config.service_account)]
    named += [
        ("secrets", core.read_namespaced_secret, name) for name in (s3.secret, *config.image_pull_secrets)
    ]
    named += [("configmaps", core.read_namespaced_config_map, s3.ca_config_map)]
    for kind, read, name in named:
        if name and cluster.can_i("get", "", kind, name):
            yield _check_reference(cluster, kind.removesuffix("s"), read, name)


def _check_reference(cluster: Cluster, kind: str, read: Callable[..., Any], name: str) -> Check:
    try:
        cluster.read(f"reading {kind} {name}", read, name, cluster.namespace)
    except Missing:
        fix = "service accounts are the chart's (serviceAccounts.*); Secrets and ConfigMaps are yours to make"
        return Check(f"{kind} {name}", "fail", f"is not in namespace {cluster.namespace}", fix)
    return Check(f"{kind} {name}", "ok", f"is in namespace {cluster.namespace}")


def _check_queue(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    if not config.queue:
        return
    found = queue.local_queue(cluster, config.queue)
    if found is None:
        detail = f"LocalQueue {config.queue} is not in namespace {cluster.namespace}"
        fix = "kubectl apply -k manifests/overlays/YOURS, or clear cluster.queue"
        yield Check("queue", "fail", detail, fix)
        return
    points_at = found["spec"].get("clusterQueue", "?")
    if inactive := names.condition(found, "Active", "False"):
        stopped = inactive.get("message") or inactive.get("reason", "")
        fix = f"does ClusterQueue {points_at} exist, with a flavor for each resource, and is it not held?"
        yield Check("queue", "fail", f"{config.queue} → {points_at} admits nothing: {stopped}", fix)
        return
    pending = (found.get("status") or {}).get("pendingWorkloads", 0)
    yield Check("queue", "ok", f"{config.queue} → {points_at}, {pending} waiting")


def _check_retries(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    """What Argo does with a step that ends with an error: only an administrator can change it."""
    if names.WORKFLOW.plural not in cluster.served(names.WORKFLOW):
        return
    found: dict[str, str] | None = None
    for namespace in dict.fromkeys((cluster.namespace, _KUBEFLOW)):
        try:
            found = cluster.get_config_map(_ARGO_CONFIG_MAP, namespace)
            break
        except (Missing, UserError):
            continue
    name = "steps' retries"
    if found is None:
        detail = f"not known: ConfigMap {_ARGO_CONFIG_MAP} is in neither namespace, or may not be read"
        yield Check(name, "warn", detail, f"as Kubeflow installs it, {_NOT_TRIED_AGAIN}")
        return
    policy = retry_policy(found)
    if policy in ("Always", "OnFailure", ""):
        said = f"retryPolicy {policy}" if policy else "no retryPolicy: each step's own attempts count"
        yield Check(name, "ok", f"{said}; a step that fails is tried again")
    else:
        yield Check(name, "warn", f"retryPolicy {policy}: {_NOT_TRIED_AGAIN}", _RETRY_CURE)


def retry_policy(config_map: Mapping[str, str]) -> str:
    """The retry policy in the data of Argo's workflow-controller-configmap; empty where it names none."""
    tree: Any = config_map
    try:
        for key in ("workflowDefaults", "spec", "templateDefaults", "retryStrategy", "retryPolicy"):
            tree = yaml.safe_load(tree) if isinstance(tree, str) else tree
            tree = (tree or {}).get(key)
    except (yaml.YAMLError, AttributeError):
        return ""
    return str(tree or "")


def _check_nodes(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    nodes = cluster.list_nodes()
    for pool in config.pools:
        wanted = pool.node_selector.items()
        fit = [node for node in nodes if wanted <= (node["metadata"].get("labels") or {}).items()]
        yield _check_pool(pool, fit)


def _check_pool(pool: NodePoolConfig, nodes: list[Manifest]) -> Check:
    name = f"pool {pool.name}"
    ready = [node for node in nodes if names.condition(node, "Ready")]
    fit = [node for node in ready if _gpus(node, pool.gpu_resource) >= pool.gpus_per_node]
    detail = f"{len(fit)} of {pool.min_nodes}–{pool.max_nodes} nodes ready with {pool.gpus_per_node} GPUs"
    if len(fit) >= max(pool.min_nodes, 1):
        return Check(name, "ok", detail)
    if ready:
        have = Counter(_gpus(node, pool.gpu_resource) for node in ready)
        found = ", ".join(f"{number} × {gpus}" for gpus, number in sorted(have.items()))
        fix = (
            f"nodes carry {found} {pool.gpu_resource}: is the device plugin running? does gpus_per_node fit?"
        )
        return Check(name, "warn", detail, fix)
    fix = "fine with an autoscaler; else compare node_selector with `kubectl get nodes --show-labels`"
    return Check(name, "warn", detail, fix)


def _check_quota(cluster: Cluster, config: ClusterConfig) -> Iterator[Check]:
    gpus: Counter[str] = Counter()
    for pool in config.pools:
        gpus[pool.gpu_resource] += pool.min_nodes * pool.gpus_per_node
    for resource, needed in sorted((+gpus).items()):
        key = f"requests.{resource}"
        for quota in cluster.list_quotas():
            status = quota.get("status") or {}
            hard = status.get("hard", {}).get(key)
            if hard is None:
                continue
            left = int(hard) - int(status.get("used", {}).get(key, 0))
            detail = (
                f"{quota['metadata']['name']}: {left} of {hard} {resource} free, {needed} needed to start"
            )
            fix = "" if left >= needed else "raise the ResourceQuota, or wait for what holds it"
            yield Check("quota", "ok" if left >= needed else "fail", detail, fix)


def _gpus(node: Manifest, resource: str) -> int:
    return int(node.get("status", {}).get("allocatable", {}).get(resource, 0))


# Nodes and quota are an administrator's to read.
_NEEDED = (_check_apis, _check_permissions, _check_queue)
