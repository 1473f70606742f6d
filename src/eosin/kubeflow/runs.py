"""Runs of pipelines on Kubeflow: submitted once, found again, terminated, retried; and recurring ones."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.errors import UserError
from eosin.kubeflow.client import pages_of
from eosin.kubeflow.parameters import pipeline_name

ACTIVE = frozenset({"PENDING", "RUNNING", "PAUSED", "CANCELING"})
"""States of a run that has not ended."""


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


@dataclass(frozen=True)
class Submitted(FoundRun):
    """`url` opens the run in Kubeflow's interface, as far as its address is known here."""

    url: str
    found: bool
    """It was going before: nothing was submitted."""

    def __str__(self) -> str:
        word = "is going already" if self.found else "is submitted"
        return f"{self.name} {word}: {self.url}"


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


_DIGEST = "eosin schedule "


@dataclass(frozen=True)
class Schedule:
    """A recurring run, as Kubeflow has it."""

    name: str
    schedule_id: str
    cron: str
    enabled: bool
    experiment_id: str
    parameters: dict[str, Any]
    digest: str
    """Of all that was asked for; empty where eosin did not make it."""

    def __str__(self) -> str:
        state = "on" if self.enabled else "off"
        return f"{self.name}  {state}  {self.cron}  {self.parameters.get('run', '')}"


@dataclass(frozen=True)
class ScheduleSpec:
    """What a schedule should be. `cron` has six fields, seconds first, in the time zone of Kubeflow (UTC)."""

    name: str
    pipeline: Path
    cron: str
    parameters: dict[str, Any]
    enabled: bool = True
    service_account: str = ""

    def digest(self) -> str:
        """Of the compiled pipeline and of everything else: another one, another schedule."""
        asked = [
            self.name, hashlib.sha256(self.pipeline.read_bytes()).hexdigest(), self.cron, self.parameters,
            self.enabled, self.service_account,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def list_schedules(client: Any, experiment: str) -> list[Schedule]:
    """Every recurring run of the experiment."""
    try:
        experiment_id = client.get_experiment(experiment_name=experiment).experiment_id
    except ValueError:  # kfp's way to say that there is none
        return []
    return [_schedule(each) for each in pages_of(client.list_recurring_runs, "recurring_runs", experiment_id)]


def ensure_schedule(client: Any, experiment: str, spec: ScheduleSpec) -> tuple[Schedule, str]:
    """Make the schedule be as `spec` says; returns it with what was done: unchanged, created or replaced.

    Recurring runs cannot be changed, so one that differs is deleted and made anew; runs that are going
    are left alone. Killed between the two, the next call creates it. No missed time is made up for, and
    one run goes at a time.
    """
    before = [each for each in list_schedules(client, experiment) if each.name == spec.name]
    same = next((each for each in before if each.digest == spec.digest()), None)
    for each in before:
        if each is not same:
            client.delete_recurring_run(each.schedule_id)
    if same is not None:
        return same, "unchanged"
    experiment_id = client.create_experiment(experiment).experiment_id
    made = client.create_recurring_run(
        experiment_id,
        spec.name,
        description=f"{_DIGEST}{spec.digest()}",
        cron_expression=spec.cron,
        max_concurrency=1,
        no_catchup=True,
        params=spec.parameters,
        pipeline_package_path=str(spec.pipeline),
        enabled=spec.enabled,
        service_account=spec.service_account or None,
    )
    return _schedule(made), "replaced" if before else "created"


def delete_schedule(client: Any, experiment: str, name: str) -> int:
    """Delete every recurring run of that name; returns how many. Runs that are going go on."""
    found = [each for each in list_schedules(client, experiment) if each.name == name]
    for each in found:
        client.delete_recurring_run(each.schedule_id)
    return len(found)


def six_fields(cron: str) -> str:
    """Cron with seconds first, as Kubeflow takes it. Raises `UserError` for neither five nor six fields."""
    fields = cron.split()
    if len(fields) == 5:
        return " ".join(["0", *fields])
    if len(fields) != 6:
        raise UserError(f"cron {cron!r} has {len(fields)} fields, not five", hint="e.g. '0 3 * * 0'")
    return " ".join(fields)


def _schedule(found: Any) -> Schedule:
    cron = found.trigger.cron_schedule if found.trigger else None
    config = found.runtime_config
    said = str(found.description or "")
    return Schedule(
        name=found.display_name,
        schedule_id=found.recurring_run_id,
        cron=str(cron.cron) if cron else "",
        enabled=found.mode == "ENABLE" or found.status == "ENABLED",
        experiment_id=found.experiment_id or "",
        parameters=dict((config.parameters if config else None) or {}),
        digest=said.removeprefix(_DIGEST) if said.startswith(_DIGEST) else "",
    )
