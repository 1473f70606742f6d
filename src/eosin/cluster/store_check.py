"""Check that pods of the cluster reach the object store, made by a pod."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from eosin.cluster.api import Cluster, Manifest, Missing
from eosin.cluster.failure import stuck_pods
from eosin.cluster.pods import doctor_pod
from eosin.config.cluster import ClusterConfig
from eosin.errors import EosinError

_TIMEOUT_S = 180.0
_POLL_S = 2.0
_LOG_LINES = 400
_NAME = "S3 from inside"
_ELSE = "`helm test RELEASE --logs` tries the same with the chart's own pod"


@dataclass(frozen=True)
class Check:
    """One finding. `warn`: eosin runs, but not everything; `fail`: something asked for cannot work."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


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
        _delete(cluster, name)


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


def _delete(cluster: Cluster, name: str) -> None:
    try:
        cluster.read(f"deleting pod {name}", cluster.core.delete_namespaced_pod, name, cluster.namespace)
    except (EosinError, Missing):
        return  # its own time limit ends it
