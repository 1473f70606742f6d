"""Runs of pipelines on Kubeflow: submitted once, found again, terminated, retried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.kubeflow.client import pages_of
from eosin.kubeflow.parameters import pipeline_name

ACTIVE = frozenset({"PENDING", "RUNNING", "PAUSED", "CANCELING"})
"""States of a run that has not ended."""


@dataclass(frozen=True)
class Submitted:
    """`url` opens the run in Kubeflow's interface, as far as its address is known here."""

    run_id: str
    name: str
    state: str
    url: str
    found: bool
    """It was going before: nothing was submitted."""

    def __str__(self) -> str:
        word = "is going already" if self.found else "is submitted"
        return f"{self.name} {word}: {self.url}"


@dataclass(frozen=True)
class FoundRun:
    """A run that Kubeflow knows."""

    run_id: str
    name: str
    state: str

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ACTIVE


def submit_run(
    client: Any, pipeline: Path, arguments: dict[str, Any], *, experiment: str, service_account: str = ""
) -> Submitted:
    """Submit one run; the same run of the same pipeline that is active is found again instead.

    A run is its whole URI and its pipeline: two that end in the same name have nothing to do with each other.
    """
    uri, name_of_pipeline = str(arguments["run"]).rstrip("/"), pipeline_name(pipeline)
    experiment_id = client.create_experiment(experiment).experiment_id
    for run in pages_of(client.list_runs, "runs", experiment_id):
        if run.state in ACTIVE and _uri_of(run) == uri and _pipeline_of(run) in (name_of_pipeline, ""):
            return Submitted(run.run_id, run.display_name, run.state, _url(client, run.run_id), True)
    name = uri.rpartition("/")[2]
    made = client.create_run_from_pipeline_package(
        str(pipeline), arguments=arguments, run_name=name, experiment_id=experiment_id,
        service_account=service_account or None,
    )  # fmt: skip
    return Submitted(made.run_id, name, "PENDING", _url(client, made.run_id), False)


def find_run(client: Any, run_uri: str, *, run_id: str = "") -> FoundRun | None:
    """The run of that id, else the newest active one of that URI, else its newest; None: there is none."""
    if run_id:
        found = client.get_run(run_id)
        return FoundRun(found.run_id, found.display_name, found.state)
    runs = [run for run in pages_of(client.list_runs, "runs", None) if _uri_of(run) == run_uri.rstrip("/")]
    runs.sort(key=lambda run: (run.state in ACTIVE, run.created_at), reverse=True)
    return FoundRun(runs[0].run_id, runs[0].display_name, runs[0].state) if runs else None


def terminate_run(client: Any, run_id: str) -> None:
    """What Kubeflow's Terminate does. The run is CANCELING at once and FAILED about 20 s later."""
    client.terminate_run(run_id)


def retry_run(client: Any, run_id: str) -> None:
    """Run the failed steps of a FAILED run again; those that are finished are kept."""
    client._run_api.run_service_retry_run(run_id)


def _uri_of(run: Any) -> str:
    """URI of the run, as it was submitted."""
    config = run.runtime_config
    return str(((config.parameters if config else None) or {}).get("run", "")).rstrip("/")


def _pipeline_of(run: Any) -> str:
    """Name of its pipeline; empty where Kubeflow gives no specification along."""
    spec = run.pipeline_spec or {}
    spec = spec.get("pipeline_spec", spec)
    return str((spec.get("pipelineInfo") or {}).get("name", ""))


def _url(client: Any, run_id: str) -> str:
    host = client._existing_config.host.rstrip("/")
    return f"{host}/#/runs/details/{run_id}"
