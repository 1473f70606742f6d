"""The tasks of a compiled pipeline as pods of a real cluster, in the place of Kubeflow's drivers and Argo.

What a backend of 2.17.0 was seen to do is done here and nothing else: parameters find their way through the
graph, loops go in parallel, a pod that was deleted is replaced and one that failed is not, the exit task runs
last. The launcher in a pod is a few lines: it runs the command of the compiled file, ends at once on SIGTERM,
and says what the task has returned.
"""

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eosin.cluster.api import Cluster, Missing
from eosin.cluster.names import RUN_ID_LABEL, WORKFLOW, WORKFLOW_LABEL, OwnerReference
from tests.support.real_cluster import eventually

ACCOUNT = "pipeline-runner"
Manifest = dict[str, Any]
Values = dict[str, Any]
# Where Kubeflow mounts folders that an image's user may write to.
_WRITABLE = ("/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config", "/tmp")
_OUTPUT = "/tmp/kfp_outputs/output_metadata.json"
_TOLD = "returned: "
_LAUNCHER = f"""
import os, pathlib, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
code = subprocess.run(sys.argv[1:]).returncode
if code == 0:
    print({_TOLD!r} + pathlib.Path({_OUTPUT!r}).read_text(), flush=True)
sys.exit(code)
"""


@dataclass(frozen=True)
class Attempt:
    """A pod of a task, and what became of it: ok, failed or deleted."""

    task: str
    given: Values
    pod: Manifest
    outcome: str
    log: list[str]
    returned: Values

    @property
    def node(self) -> str:
        return str(self.pod["spec"].get("nodeName", ""))


@dataclass(frozen=True)
class _Scope:
    """A level of the graph: its inputs, and what its tasks have returned."""

    inputs: Values
    returned: dict[str, Values]

    def value(self, source: Manifest) -> Any:
        if "taskOutputParameter" in source:
            wanted = source["taskOutputParameter"]
            return self.returned[wanted["producerTask"]][wanted["outputParameterKey"]]
        if "runtimeValue" in source:
            return source["runtimeValue"]["constant"]
        value = self.inputs[source["componentInputParameter"]]
        selector = re.fullmatch(
            r'parseJson\(string_value\)\["(\w+)"\]', source.get("parameterExpressionSelector", "")
        )
        return json.loads(value)[selector[1]] if selector else value

    def values(self, sources: Mapping[str, Manifest]) -> Values:
        """What a task is given; a constant may name others of them."""
        found = {key: self.value(each) for key, each in sources.items()}
        return {key: filled(value, found) if "runtimeValue" in sources[key] else value
                for key, value in found.items()}  # fmt: skip


def filled(text: Any, values: Mapping[str, Any]) -> Any:
    """`text` with the parameters that it names in their places."""
    if not isinstance(text, str):
        return text
    return re.sub(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}", lambda found: str(values[found[1]]), text)


class CompiledPods:
    """One run of a compiled pipeline, owned by a Workflow. `while_running` is called, with the name of a pod
    that runs, until it ends."""

    def __init__(
        self, cluster: Cluster, documents: list[Manifest], owner: OwnerReference,
        while_running: Callable[[str, Values, int, str], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self._cluster, self._owner, self._while_running = cluster, owner, while_running
        self._spec, platform = documents
        self._executors = self._spec["deploymentSpec"]["executors"]
        self._on_kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.attempts: list[Attempt] = []

    def run(self, arguments: Values) -> bool:
        """Run to the end, the exit task last; whether all tasks were ok."""
        declared = self._spec["root"]["inputDefinitions"]["parameters"]
        defaults = {name: each["defaultValue"] for name, each in declared.items() if "defaultValue" in each}
        scope = _Scope(_typed(declared, defaults | arguments), {})
        return self._go_through(self._spec["root"], scope)

    def of(self, task: str) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.task == task]

    def _go_through(self, component: Manifest, scope: _Scope) -> bool:
        tasks, ok = dict(component["dag"]["tasks"]), True
        while tasks:
            name = next(
                name for name, task in tasks.items() if not set(task.get("dependentTasks", ())) & set(tasks)
            )
            task = tasks.pop(name)
            if ok or "triggerPolicy" in task:
                ok = self._task(name, task, scope) and ok
        return ok

    def _task(self, name: str, task: Manifest, scope: _Scope) -> bool:
        given = scope.values(task["inputs"]["parameters"])
        component = self._spec["components"][task["componentRef"]["name"]]
        if "dag" not in component:
            returned = self._attempts(name, task, component, given, scope)
            scope.returned[name] = returned or {}
            return returned is not None
        loop = task.get("parameterIterator")
        if loop is None:
            return self._go_through(component, _Scope(given, {}))
        items = given[loop["items"]["inputParameter"]]
        scopes = [_Scope({**given, loop["itemInput"]: json.dumps(item)}, {}) for item in items]
        with ThreadPoolExecutor(len(scopes)) as threads:
            return all(list(threads.map(lambda each: self._go_through(component, each), scopes)))

    def _attempts(
        self, name: str, task: Manifest, component: Manifest, given: Values, scope: _Scope
    ) -> Values | None:
        """What the task returned; None where it failed."""
        given = _typed(component["inputDefinitions"]["parameters"], given)
        for number in range(1, int(task["retryPolicy"]["maxRetryCount"]) + 2):
            shard = f"-{given['shard']}" if "shard" in given else ""
            pod = self._pod(f"{self._owner.name}-{name}{shard}-{number}", component, given, scope)
            attempt = self._follow(name, given, number, pod)
            self.attempts.append(attempt)
            if attempt.outcome == "ok":
                return attempt.returned
            if attempt.outcome == "failed":
                return None
        return None

    def _follow(self, task: str, given: Values, number: int, pod: Manifest) -> Attempt:
        name = pod["metadata"]["name"]
        core, namespace = self._cluster.core, self._cluster.namespace
        made = self._cluster.read("a pod", core.create_namespaced_pod, namespace, pod)

        def ended() -> tuple[str, Manifest] | None:
            try:
                seen = self._cluster.get_pod(name)
            except Missing:
                return "deleted", made
            if seen["metadata"]["uid"] != made["metadata"]["uid"] or "deletionTimestamp" in seen["metadata"]:
                return "deleted", seen
            phase = seen["status"].get("phase")
            if phase == "Running":
                self._while_running(task, given, number, name)
            return {"Succeeded": ("ok", seen), "Failed": ("failed", seen)}.get(phase)

        outcome, seen = eventually(f"{name} ends", ended)
        log = self._cluster.pod_log(name, "main", tail_lines=10_000)
        told = next((line.removeprefix(_TOLD) for line in log if line.startswith(_TOLD)), "{}")
        return Attempt(task, given, seen, outcome, log, json.loads(told).get("parameterValues", {}))

    def _pod(self, name: str, component: Manifest, given: Values, scope: _Scope) -> Manifest:
        label = component["executorLabel"]
        container, platform = self._executors[label]["container"], self._on_kubernetes[label]
        declared = component["inputDefinitions"]["parameters"]
        request = json.dumps(_executor_input(name, component, {key: given[key] for key in declared}))
        command = [*container["command"], *(part.replace("{{$}}", request) for part in container["args"])]
        volumes = [{"name": f"writable{number}", "emptyDir": {}} for number in range(len(_WRITABLE))]
        mounts = [{"name": f"writable{number}", "mountPath": path} for number, path in enumerate(_WRITABLE)]
        for number, (volume, path) in enumerate(_volumes(platform, scope)):
            volumes.append({"name": f"access{number}", **volume})
            mounts.append({"name": f"access{number}", "mountPath": path})
        main = {
            "name": "main", "image": filled(container["image"], given),
            "command": ["python3", "-c", _LAUNCHER, *command], "env": _env(platform, scope),
            "volumeMounts": mounts, "resources": _resources(container.get("resources", {})),
            "securityContext": {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True, "seccompProfile": {"type": "RuntimeDefault"},
            },
        }  # fmt: skip
        secrets = [{"name": scope.value(each["secretNameParameter"])} for each in platform["imagePullSecret"]]
        owner = {"apiVersion": WORKFLOW.api_version, "kind": WORKFLOW.kind, "name": self._owner.name,
                 "uid": self._owner.uid, "controller": True}  # fmt: skip
        labels = {WORKFLOW_LABEL: self._owner.name, RUN_ID_LABEL: self._owner.name}
        return {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {
                "restartPolicy": "Never", "serviceAccountName": ACCOUNT, "imagePullSecrets": secrets,
                # The images' own user; the empty image over the machine's programs has none.
                "securityContext": {"runAsUser": 10001, "runAsGroup": 10001, "runAsNonRoot": True},
                "containers": [main], "volumes": volumes,
            },
        }  # fmt: skip


def _typed(declared: Manifest, given: Values) -> Values:
    """Whole numbers as such: the compiled file holds them as 4.0."""
    whole = {name for name, each in declared.items() if each["parameterType"] == "NUMBER_INTEGER"}
    return {name: int(value) if name in whole else value for name, value in given.items()}


def _executor_input(name: str, component: Manifest, values: Values) -> Manifest:
    """As the driver hands it to the command."""
    outputs = component.get("outputDefinitions", {})
    return {
        "inputs": {"parameterValues": values},
        "outputs": {
            "parameters": {
                key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})
            },
            "artifacts": {
                key: {"artifacts": [{"name": key, "type": each["artifactType"], "metadata": {},
                                     "uri": f"minio://mlpipeline/v2/artifacts/{name}/{key}"}]}
                for key, each in outputs.get("artifacts", {}).items()
            },
            "outputFile": _OUTPUT,
        },
    }  # fmt: skip


def _env(platform: Manifest, scope: _Scope) -> list[Manifest]:
    kinds = (("secretAsEnv", "secret", "secretKeyRef"), ("configMapAsEnv", "configMap", "configMapKeyRef"))
    return [
        {"name": pair["envVar"], "valueFrom": {reference: {
            "name": scope.value(each[f"{kind}NameParameter"]), "key": pair[f"{kind}Key"],
            "optional": each["optional"]}}}
        for field, kind, reference in kinds for each in platform[field] for pair in each["keyToEnv"]
    ]  # fmt: skip


def _volumes(platform: Manifest, scope: _Scope) -> list[tuple[Manifest, str]]:
    secrets = [
        ({"secret": {"secretName": scope.value(each["secretNameParameter"]), "optional": each["optional"]}},
         each["mountPath"])
        for each in platform["secretAsVolume"]
    ]  # fmt: skip
    maps = [
        ({"configMap": {"name": scope.value(each["configMapNameParameter"]), "optional": each["optional"]}},
         each["mountPath"])
        for each in platform["configMapAsVolume"]
    ]  # fmt: skip
    shm = [
        ({"emptyDir": {"medium": each["medium"], "sizeLimit": each["sizeLimit"]}}, each["mountPath"])
        for each in platform.get("emptyDirMounts", ())
    ]
    return secrets + maps + shm


def _resources(asked: Manifest) -> Manifest:
    keys = {"resourceCpuRequest": ("requests", "cpu"), "resourceMemoryRequest": ("requests", "memory"),
            "resourceMemoryLimit": ("limits", "memory")}  # fmt: skip
    found: Manifest = {}
    for key, value in asked.items():
        kind, name = keys[key]
        found.setdefault(kind, {})[name] = value
    return found
