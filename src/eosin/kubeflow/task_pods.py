"""Pods of a compiled pipeline's tasks: their GPUs, memory, /dev/shm and nodes, written into the file.

Resources written into the compiled file need no parameter of the pipeline, so that the same file runs
with `kfp.local`, which takes no notice of them.
"""

import copy
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eosin.config.cluster import TaskPodConfig, TolerationConfig
from eosin.errors import UserError
from eosin.words import nearest_of

Document = dict[str, Any]
_GPU_TAINT = TolerationConfig(key="nvidia.com/gpu", effect="NoSchedule")


def read_pods(texts: Iterable[str] = (), file: Path | None = None) -> dict[str, TaskPodConfig]:
    """Task → what its pods ask for: the file, with every `TASK.KEY=VALUE` applied over it.

    Raises `UserError` naming the task and key, with the nearest where it is misspelt.
    """
    tree = _read(file)
    for text in texts:
        _apply(tree, text)
    return {task: _validated(task, keys) for task, keys in tree.items()}


@contextmanager
def placed(pipeline: Path, pods: Mapping[str, TaskPodConfig]) -> Iterator[Path]:
    """The compiled pipeline with `pods` written into it, as a file of the same name that ends with the block.

    Where nothing is asked for it is the file itself. Raises `UserError` for a task that it does not have.
    """
    if not pods:
        yield pipeline
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / pipeline.name
        documents = place(list(yaml.safe_load_all(pipeline.read_text())), pods)
        path.write_text(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=110))
        yield path


def place(documents: list[Document], pods: Mapping[str, TaskPodConfig]) -> list[Document]:
    """A compiled pipeline (its specification, then its platform's) with `pods` written into both.

    Pure: what is given stays as it is. Raises `UserError` for a task that the pipeline does not have.
    """
    spec, *rest = copy.deepcopy(documents)
    platform: Document = rest[0] if rest else {}
    executors = spec["deploymentSpec"]["executors"]
    on_kubernetes = platform
    for key in ("platforms", "kubernetes", "deploymentSpec", "executors"):
        on_kubernetes = on_kubernetes.setdefault(key, {})
    for task, pod in pods.items():
        for label in _executors_of(task, list(executors)):
            _set_resources(executors[label]["container"], pod)
            _set_placement(on_kubernetes.setdefault(label, {}), pod)
    return [spec, platform]


def _executors_of(task: str, labels: list[str]) -> list[str]:
    """Labels of the executors of `task`: kfp numbers those of components that are used twice."""
    found = [label for label in labels if re.fullmatch(rf"exec-{re.escape(task)}(-\d+)?", label)]
    if not found:
        known = sorted(label.removeprefix("exec-") for label in labels)
        raise UserError(f"this pipeline has no task {task!r}", hint=f"it has {', '.join(known)}")
    return found


def _set_resources(container: Document, pod: TaskPodConfig) -> None:
    """As kfp's set_accelerator_type, set_cpu_request and set_memory_limit would."""
    resources = container.setdefault("resources", {})
    if pod.gpus:
        resources["accelerator"] = {"resourceType": pod.gpu_resource, "resourceCount": str(pod.gpus)}
    if pod.cpu:
        resources["resourceCpuRequest"] = pod.cpu
    if pod.memory:
        resources |= {"resourceMemoryRequest": pod.memory, "resourceMemoryLimit": pod.memory}
    if not resources:
        del container["resources"]


def _set_placement(executor: Document, pod: TaskPodConfig) -> None:
    """As kfp-kubernetes' add_node_selector, add_toleration and empty_dir_mount would."""
    if pod.node_selector:
        executor["nodeSelector"] = {"labels": dict(pod.node_selector)}
    tolerations = [*pod.tolerations, *([_GPU_TAINT] if pod.gpus else [])]
    if tolerations:
        executor["tolerations"] = [_toleration(each) for each in dict.fromkeys(tolerations)]
    if pod.shm_size:
        shm = {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": pod.shm_size}
        executor["emptyDirMounts"] = [shm]


def _toleration(toleration: TolerationConfig) -> Document:
    manifest = toleration.manifest()
    if "tolerationSeconds" in manifest:
        manifest["tolerationSeconds"] = str(manifest["tolerationSeconds"])  # JSON of a protobuf int64
    return manifest


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        tree = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", hint="--pods and EOSIN_PODS name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} must map tasks to what their pods ask for")
    return {str(task): keys for task, keys in tree.items()}


def _apply(tree: dict[str, Any], text: str) -> None:
    path, separator, value = text.partition("=")
    task, _, key = path.strip().partition(".")
    if not separator or not task:
        raise UserError(f"--pod {text!r} is not of the form TASK.KEY=VALUE", hint="e.g. evaluate.gpus=1")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--pod {path}: {value!r} is not YAML") from error
    before = tree.get(task)
    before = before if isinstance(before, dict) else {}
    tree[task] = {**before, key: parsed} if key else parsed


def _validated(task: str, keys: Any) -> TaskPodConfig:
    try:
        return TaskPodConfig.model_validate({} if keys is None else keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        unknown = first["type"] == "extra_forbidden"
        path = ".".join(filter(None, (task, key)))
        message = "there is no such key" if unknown else f"{first['msg']}, not {first['input']!r}"
        raise UserError(
            f"pods of {path}: {message}", hint=nearest_of(key, TaskPodConfig.model_fields) if unknown else ""
        ) from error
