"""What lies compiled in the repository is what the sources compile to."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from eosin_pipelines.defaults import write

ROOT = Path(__file__).parents[2]


_IMAGES = ["evaluate_image", "index_image", "train_image"]
PIPELINES = {
    "pretrain": [*_IMAGES, "run"],
    "evaluate": [*_IMAGES, "run", "teacher"],
    "retrain": [*_IMAGES, "name", "registry", "run"],
    "scaling_study": [*_IMAGES, "run"],
    "decode": ["index", "run", "train_image"],
    "embed": ["evaluate_image", "model", "run"],
}
"""Each with the parameters it cannot do without."""


def test_every_source_is_compiled_and_tested() -> None:
    assert {path.stem for path in (ROOT / "pipelines").glob("*.yaml")} == set(PIPELINES)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"eosin_pipelines.{name}" in makefile for name in PIPELINES), "`make compile` leaves one out"


def without_patch_version(compiled: str) -> str:
    """A compiled pipeline without the third number of the compiler's version: a release that only mends the
    compiler changes nothing that a cluster runs, and is no reason to compile again."""
    return re.sub(r"^(sdkVersion: kfp-\d+\.\d+)\.\S+$", r"\1", compiled, flags=re.M)


@pytest.mark.parametrize("name", PIPELINES)
def test_yaml_has_not_drifted(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"eosin_pipelines.{name}")
    fresh = write(getattr(module, name), tmp_path / f"{name}.yaml").read_text()
    assert without_patch_version(module.COMPILED.read_text()) == without_patch_version(fresh), (
        "run `make compile`"
    )


def test_drift_is_more_than_a_patch_version_of_the_compiler() -> None:
    assert without_patch_version("a: 1\nsdkVersion: kfp-2.17.0\nb: 2") == without_patch_version(
        "a: 1\nsdkVersion: kfp-2.17.3\nb: 2"
    )
    for other in ("a: 1\nsdkVersion: kfp-2.18.0\nb: 2", "a: 1\nsdkVersion: kfp-2.17.0\nb: 3"):
        assert without_patch_version("a: 1\nsdkVersion: kfp-2.17.0\nb: 2") != without_patch_version(other)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_is_described_and_few_are_required(name: str) -> None:
    spec = next(iter(yaml.safe_load_all((ROOT / f"pipelines/{name}.yaml").read_text())))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    required = [name for name, value in parameters.items() if "defaultValue" not in value]
    assert sorted(required) == sorted(PIPELINES[name])


def parts_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A compiled pipeline's specification, and what its platform is told of each executor."""
    spec, platform = yaml.safe_load_all((ROOT / f"pipelines/{name}.yaml").read_text())
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks_of(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task that runs in a pod of its own, by name."""
    dags = [spec["root"]["dag"], *(each["dag"] for each in spec["components"].values() if "dag" in each)]
    found = {name: task for dag in dags for name, task in dag["tasks"].items()}
    return {name: task for name, task in found.items()
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_the_last_task_runs_however_the_rest_has_ended(name: str) -> None:
    """Kubeflow's Terminate leaves a step no time: this task is what stops the training."""
    spec, _ = parts_of(name)
    root = spec["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "finish"}
    assert root["finish"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert root["finish"]["dependentTasks"] == ["exit-handler-1"]


@pytest.mark.parametrize("name", PIPELINES)
def test_no_retry_is_cut_short_by_the_time_since_the_first_attempt(name: str) -> None:
    """Argo ends every attempt that is running so long after the first began: days for what lasts days."""
    spec, _ = parts_of(name)
    for task, each in tasks_of(spec).items():
        policy = each["retryPolicy"]
        assert int(policy["backoffMaxDuration"].removesuffix("s")) >= 30 * 86400, task
    if "train" in tasks_of(spec):
        assert tasks_of(spec)["train"]["retryPolicy"]["maxRetryCount"] >= 20


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_is_told_how_to_reach_store_and_registry(name: str) -> None:
    spec, executors = parts_of(name)
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor, told in executors.items():
        variables = [pair["envVar"] for kind in ("secretAsEnv", "configMapAsEnv")
                     for source in told[kind] for pair in source["keyToEnv"]]  # fmt: skip
        assert len(variables) == len(set(variables)), f"{executor}: one variable, two sources"
        assert {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "EOSIN_AWS_ENDPOINT_URL"} <= set(variables)
        sources = [*told["secretAsEnv"], *told["configMapAsEnv"], *told["configMapAsVolume"]]
        assert all(source["optional"] for source in sources), "pods start without any of them"
        assert told["imagePullSecret"]


@pytest.mark.parametrize("name", PIPELINES)
def test_no_component_installs_packages_at_run_time(name: str) -> None:
    assert "pip install" not in (ROOT / f"pipelines/{name}.yaml").read_text()


@pytest.mark.parametrize("module", ["torch", "timm", "kfp", "boto3", "pyarrow", "cv2", "openslide"])
def test_help_imports_nothing_heavy(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, eosin.cli.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Measured on Kubeflow Pipelines 2.17: 644 kB for a demo run of 4 tasks, 3 loops and 9 iterations, 6 of them
# evaluations of 42 to 46 kB each (an iteration's DAG, driver, executor and their wrappers).
_KB_AN_ITERATION = 46
_KB_A_TASK = 38


def workflow_kb(name: str, iterations: dict[str, int]) -> int:
    """Size of the Workflow object of a whole run, from above. `iterations`: of the loop around each task."""
    spec = next(iter(yaml.safe_load_all((ROOT / f"pipelines/{name}.yaml").read_text())))
    dags = {"root": spec["root"]["dag"]["tasks"]}
    dags |= {key: each["dag"]["tasks"] for key, each in spec["components"].items() if "dag" in each}
    size_kb = 0
    for key, tasks in dags.items():
        if key.startswith("comp-for-loop"):
            (rounds,) = (number for task, number in iterations.items() if task in tasks)
            size_kb += rounds * len(tasks) * _KB_AN_ITERATION
        else:
            size_kb += len(tasks) * _KB_A_TASK
    return size_kb


def test_a_study_of_a_thousand_evaluations_fits_into_a_workflow_object() -> None:
    """4 values × 25 teachers × 10 tasks: the number of evaluations is not in the sum, that of shards is."""
    spec = next(iter(yaml.safe_load_all((ROOT / "pipelines/scaling_study.yaml").read_text())))
    defaults = spec["root"]["inputDefinitions"]["parameters"]
    rounds = {
        "index-shard": defaults["num_index_shards"]["defaultValue"],
        "decode": defaults["num_decode_shards"]["defaultValue"],
        "train": 4,
        "evaluate": defaults["num_evaluation_shards"]["defaultValue"],
    }
    assert workflow_kb("scaling_study", rounds) < 1000
    assert workflow_kb("scaling_study", {**rounds, "evaluate": 1000}) > 40_000, "one pod a pair did not"


def test_the_arithmetic_covers_what_was_measured() -> None:
    """A demo run with 6 evaluations, a pod each, had 644 kB."""
    assert 644 < workflow_kb("pretrain", {"index-shard": 2, "decode": 1, "evaluate": 6}) < 1.25 * 644


@pytest.mark.parametrize("name", PIPELINES)
def test_no_loop_goes_over_what_may_be_empty(name: str) -> None:
    """A backend fails the task that collects an empty loop: loops go over shards, of which there is one at
    least, or over the runs of a study, of which there are two at least."""
    spec = next(iter(yaml.safe_load_all((ROOT / f"pipelines/{name}.yaml").read_text())))
    loops = [
        task["parameterIterator"]["items"]["inputParameter"]
        for component in spec["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]
    makers = {re.sub(r"pipelinechannel--(.*)-Output.*", r"\1", items) for items in loops}
    assert makers <= {
        "plan", "plan-study", "plan-retrain", "index-snapshot", "train", "choose", "pin-variants",
        "share-evaluations", "plan-tiles",
    }  # fmt: skip
    assert len(loops) >= (1 if name in ("decode", "embed") else 3)
