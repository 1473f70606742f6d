"""The TrainJob and its runtime: the upstream schemas, and the same training as the JobSet's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from eosin import runs
from eosin.cli.app import invoke
from eosin.cluster.jobset import render_jobset
from eosin.cluster.trainjob import render_trainjob
from eosin.config import load_config
from eosin.errors import UserError
from tests.support.kubernetes import check_golden, crd_errors, load_all

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example/eosin-train@sha256:" + "0" * 64
RUN = "s3://bucket/runs/vits16"
ONE_NODE = ""
SPOT = """
train: {num_microbatches: 64}
cluster:
  queue: gpus
  pools:
  - {name: anchor, min_nodes: 2, max_nodes: 3, gpus_per_node: 8}
  - {name: spot, spot: true, max_nodes: 4, gpus_per_node: 8}
"""
CONFIGS = {"one-node": ONE_NODE, "spot": SPOT}


def render(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return render_trainjob(load_config(text), RUN, image=IMAGE, namespace="pathology")


@pytest.mark.parametrize("case", CONFIGS)
def test_valid_for_the_crds(case: str) -> None:
    runtime, job = render(CONFIGS[case])
    assert crd_errors(runtime, "trainer.kubeflow.org_trainingruntimes.yaml") == []
    assert crd_errors(job, "trainer.kubeflow.org_trainjobs.yaml") == []


@pytest.mark.parametrize("case", CONFIGS)
def test_accepted_by_the_published_models(case: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    runtime, job = render(CONFIGS[case])
    read = models.TrainerV1alpha1TrainingRuntime.from_dict(runtime)
    assert read.spec.ml_policy.num_nodes == (2 if case == "spot" else 1)
    assert models.TrainerV1alpha1TrainJob.from_dict(job).spec.runtime_ref.name == runtime["metadata"]["name"]


def test_golden() -> None:
    config = load_config(SPOT)
    text = yaml.safe_dump_all(render(SPOT), sort_keys=False, width=120)
    text = text.replace(config.digest(), "CONFIG-DIGEST")
    check_golden(GOLDEN / "trainjob.yaml", text, update=os.environ.get("EOSIN_UPDATE_GOLDEN") == "1")


def test_it_is_the_jobset_but_for_what_trainer_must_find() -> None:
    runtime, _ = render(SPOT)
    jobset = render_jobset(load_config(SPOT), RUN, image=IMAGE, namespace="pathology")
    spec = runtime["spec"]["template"]["spec"]
    theirs = {job["name"]: job for job in spec["replicatedJobs"]}
    ours = {job["name"]: job for job in jobset["spec"]["replicatedJobs"]}
    assert theirs.keys() == ours.keys()
    assert {name for name in ours if theirs[name] != ours[name]} == {"anchor"}
    assert {key for key in jobset["spec"] if spec.get(key) != jobset["spec"][key]} == {
        "replicatedJobs", "ttlSecondsAfterFinished",
    }  # fmt: skip
    anchor = theirs["anchor"]["template"]
    assert anchor["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    (container,) = anchor["spec"]["template"]["spec"]["containers"]
    (exits, _) = anchor["spec"]["podFailurePolicy"]["rules"]
    assert container["name"] == exits["onExitCodes"]["containerName"] == "node"
    # Trainer sets both from numNodes: what it sets must be what is there.
    assert anchor["spec"]["parallelism"] == anchor["spec"]["completions"] == 2
    assert theirs["anchor"]["replicas"] == 1


def test_spot_pools_in_jobs_of_their_own_are_refused() -> None:
    with pytest.raises(UserError, match="the pods of all pools"):
        render(SPOT.replace("queue: gpus", "queue: gpus\n  spot_as: elastic-job"))


def test_the_trainjob_alone_is_queued() -> None:
    runtime, job = render(SPOT)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    inside = runtime["spec"]["template"]["metadata"]["labels"]
    assert not [key for key in {**inside, **runtime["metadata"]["labels"]} if key.startswith("kueue.")]


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [("jobset", ["PodDisruptionBudget", "JobSet"]),
     ("trainjob", ["PodDisruptionBudget", "TrainingRuntime", "TrainJob"])],
)  # fmt: skip
def test_manifest_prints_what_kubectl_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, kinds: list[str]
) -> None:
    monkeypatch.setattr(runs, "load_run", lambda uri: load_config(SPOT))
    monkeypatch.setattr(runs, "load_pin", lambda uri: None)
    assert invoke(["manifest", RUN, "--kind", kind, "--image", IMAGE]) == 0
    printed = load_all(capsys.readouterr().out)
    assert [each["kind"] for each in printed] == kinds
    assert len({each["metadata"]["name"] for each in printed}) == 1
    assert invoke(["manifest", RUN]) == 2
    assert "no image for the training pods" in capsys.readouterr().err
