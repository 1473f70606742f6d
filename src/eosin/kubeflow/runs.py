"""Runs of pipelines on Kubeflow: submitted once, found again while they go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.kubeflow.client import pages_of

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


def submit_run(
    client: Any, pipeline: Path, arguments: dict[str, Any], *, experiment: str, service_account: str = ""
) -> Submitted:
    """Submit one run, named after its run URI; one of that name that is going is found again instead."""
    name = str(arguments["run"]).rstrip("/").rpartition("/")[2]
    experiment_id = client.create_experiment(experiment).experiment_id
    for run in pages_of(client.list_runs, "runs", experiment_id):
        if run.display_name == name and run.state in ACTIVE:
            return Submitted(run.run_id, name, run.state, _url(client, run.run_id), True)
    made = client.create_run_from_pipeline_package(
        str(pipeline), arguments=arguments, run_name=name, experiment_id=experiment_id,
        service_account=service_account or None,
    )  # fmt: skip
    return Submitted(made.run_id, name, "PENDING", _url(client, made.run_id), False)


def _url(client: Any, run_id: str) -> str:
    host = client._existing_config.host.rstrip("/")
    return f"{host}/#/runs/details/{run_id}"
