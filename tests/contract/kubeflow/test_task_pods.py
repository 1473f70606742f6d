"""GPUs, memory and nodes of a pipeline's tasks: what is written into the compiled file, and who reads it."""

import builtins
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from eosin.config.cluster import TaskPodConfig
from eosin.errors import UserError
from eosin.kubeflow.parameters import compiled_pipeline, pipeline_names
from eosin.kubeflow.task_pods import place, placed, read_pods

SLICE = {
    "gpus": 2, "gpu_resource": "nvidia.com/mig-1g.10gb", "cpu": "4", "memory": "16Gi", "shm_size": "8Gi",
    "node_selector": {"pool": "mig"},
    "tolerations": [{"key": "team", "operator": "Equal", "value": "x", "toleration_seconds": 30}],
}  # fmt: skip


def documents(pipeline: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(compiled_pipeline(pipeline).read_text()))


def container(placed_documents: list[dict[str, Any]], task: str) -> dict[str, Any]:
    return placed_documents[0]["deploymentSpec"]["executors"][f"exec-{task}"]["container"]


def on_kubernetes(placed_documents: list[dict[str, Any]], task: str) -> dict[str, Any]:
    return placed_documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task}"]


def tasks_for_gpus(pipeline: str) -> list[str]:
    return {"decode": ["decode-tiles"], "embed": ["embed-tiles"]}.get(pipeline, ["decode", "evaluate"])


@pytest.mark.parametrize("pipeline", pipeline_names())
def test_every_pipeline_can_place_its_work_on_gpus(pipeline: str) -> None:
    before = documents(pipeline)
    untouched = copy.deepcopy(before)
    tasks = tasks_for_gpus(pipeline)
    after = place(before, read_pods([*(f"{task}.gpus=1" for task in tasks), f"{tasks[0]}.shm_size=4Gi"]))
    assert before == untouched
    for task in tasks:
        accelerator = container(after, task)["resources"]["accelerator"]
        assert accelerator == {"resourceType": "nvidia.com/gpu", "resourceCount": "1"}
        gpu_taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        assert on_kubernetes(after, task)["tolerations"] == [gpu_taint]
        assert on_kubernetes(after, task)["secretAsEnv"], "the credentials are still there"
    assert on_kubernetes(after, tasks[0])["emptyDirMounts"]
    assert all("emptyDirMounts" not in on_kubernetes(after, task) for task in tasks[1:])
    assert after[0]["root"] == before[0]["root"] and after[0]["components"] == before[0]["components"]
    assert "resources" not in container(after, "finish")


def test_the_same_as_kfp_itself_would_write(tmp_path: Path) -> None:
    kfp = pytest.importorskip("kfp", reason="pip install 'eosin[kubeflow]'")
    from kfp import kubernetes

    @kfp.dsl.container_component
    def evaluate():  # type: ignore[no-untyped-def]  # kfp wants no annotation of its result here
        return kfp.dsl.ContainerSpec(image="python:3.11", command=["true"])

    def compiled(*, with_pods: bool) -> Path:
        @kfp.dsl.pipeline(name="two")
        def two() -> None:
            for task in (evaluate(), evaluate()):
                if with_pods:
                    task.set_accelerator_type(SLICE["gpu_resource"]).set_accelerator_limit(SLICE["gpus"])
                    task.set_cpu_request("4").set_memory_request("16Gi").set_memory_limit("16Gi")
                    kubernetes.add_node_selector(task, "pool", "mig")
                    kubernetes.add_toleration(task, "team", "Equal", "x", toleration_seconds=30)
                    kubernetes.add_toleration(task, "nvidia.com/gpu", "Exists", effect="NoSchedule")
                    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")

        path = tmp_path / f"{with_pods}.yaml"
        kfp.compiler.Compiler().compile(two, str(path))
        return path

    wanted = list(yaml.safe_load_all(compiled(with_pods=True).read_text()))
    bare = compiled(with_pods=False)
    found = place(list(yaml.safe_load_all(bare.read_text())), read_pods([f"evaluate={json.dumps(SLICE)}"]))
    deprecated = {"count", "type", "cpuRequest", "memoryRequest", "memoryLimit"}
    assert found[1] == wanted[1]
    assert _without(found[0], deprecated) == _without(wanted[0], deprecated)
    assert len(found[0]["deploymentSpec"]["executors"]) == 2, "both uses of the component are placed"


def _without(tree: Any, keys: set[str]) -> Any:
    """`tree` less `keys` of every `resources`: kfp still writes those it has replaced."""
    if isinstance(tree, list):
        return [_without(item, keys) for item in tree]
    if not isinstance(tree, dict):
        return tree
    inside = {key: _without(item, keys) for key, item in tree.items()}
    if "resources" in inside:
        kept = {key: item for key, item in inside["resources"].items() if key not in keys}
        if "accelerator" in kept:
            kept["accelerator"] = {key: x for key, x in kept["accelerator"].items() if key not in keys}
        inside["resources"] = kept
    return inside


@pytest.mark.parametrize("pipeline", pipeline_names())
def test_a_placed_pipeline_is_one_that_kfp_loads(pipeline: str) -> None:
    components = pytest.importorskip("kfp.components", reason="pip install 'eosin[kubeflow]'")
    task = tasks_for_gpus(pipeline)[-1]
    with placed(compiled_pipeline(pipeline), read_pods([f"{task}={json.dumps(SLICE)}"])) as out:
        loaded = components.load_component_from_file(str(out))
    executor = loaded.pipeline_spec.deployment_spec["executors"][f"exec-{task}"]
    assert executor["container"]["resources"]["accelerator"]["resourceType"] == SLICE["gpu_resource"]
    assert set(loaded.component_spec.inputs or {}) == set(
        components.load_component_from_file(str(compiled_pipeline(pipeline))).component_spec.inputs or {}
    ), "placing adds no parameter"


def test_a_placed_loop_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kfp.local takes no notice of resources; it must not stumble over them either."""
    kfp = pytest.importorskip("kfp", reason="pip install 'eosin[kubeflow]'")
    from kfp import local

    @kfp.dsl.component(base_image="python:3.11", install_kfp_package=False)
    def decode(shard: int) -> int:
        return shard * 10

    @kfp.dsl.component(base_image="python:3.11", install_kfp_package=False)
    def evaluate(decoded: list) -> int:
        return int(sum(decoded))

    @kfp.dsl.pipeline(name="loop")
    def loop(note: str = "") -> int:
        with kfp.dsl.ParallelFor([1, 2]) as shard:
            decoded = decode(shard=shard)
        return evaluate(decoded=kfp.dsl.Collected(decoded.output)).output

    compiled = tmp_path / "loop.yaml"
    kfp.compiler.Compiler().compile(loop, str(compiled))
    pod = TaskPodConfig.model_validate(SLICE)
    with placed(compiled, {"decode": pod, "evaluate": pod}) as path:
        assert path != compiled
        monkeypatch.setattr(local.config.LocalExecutionConfig, "instance", None)
        # kfp runs loops in threads, which can leave print indented for good: put it back afterwards.
        monkeypatch.setattr(builtins, "print", print)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
        assert kfp.components.load_component_from_file(str(path))().output == 30


def test_settings_win_over_the_file_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text("evaluate: {gpus: 1, memory: 16Gi}\ndecode: {gpus: 1}\nplan:\n")
    pods = read_pods(["evaluate.gpus=4", "evaluate.cpu=8", "decode={cpu: 500m}"], file)
    assert pods["evaluate"] == TaskPodConfig(gpus=4, memory="16Gi", cpu="8")
    assert pods["decode"] == TaskPodConfig(cpu="500m")
    assert pods["plan"] == TaskPodConfig()


def test_nothing_asked_for_is_the_file_as_it_was() -> None:
    path = compiled_pipeline("pretrain")
    with placed(path, {}) as same:
        assert same == path
    assert place(documents("pretrain"), {"plan": TaskPodConfig()})[0] == documents("pretrain")[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("evaluate", "not of the form"),
        ("=1", "not of the form"),
        ("evaluate.gpu=1", "evaluate.gpu: there is no such key"),
        ("evaluate.gpus=-1", "evaluate.gpus: "),
        ("evaluate.gpus=many", "not 'many'"),
        ("evaluate.memory=16 GB", "evaluate.memory: "),
        ("evaluate.gpu_resource=h100", "evaluate.gpu_resource: "),
        ("evaluate=1", "evaluate: "),
        ("evaluate.node_selector=[", "not YAML"),
        ("judge.gpus=1", "no task 'judge'"),
    ],
)
def test_what_cannot_be_is_named(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        place(documents("evaluate"), read_pods([text]))
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "{", None])
def test_a_file_that_is_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "pods.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"pods\.yaml"):
        read_pods((), file)
