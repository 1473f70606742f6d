"""What eosin asks of Kubeflow Pipelines, given kfp's own client: a run, a schedule, what there is."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.errors import TransientError, UserError

GOING = frozenset({"PENDING", "RUNNING", "PAUSED", "CANCELING"})
_PAGE = 100
_DIGEST = "eosin schedule "
_BUSY = {408, 429}


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
class Schedule:
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


@contextmanager
def kubeflow_errors(host: str) -> Iterator[None]:
    """Errors of the client in a person's words: `TransientError` where another try may help."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    where = f"Kubeflow at {host or 'its default address'}"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what the client prints is no result of a command
            yield
    except ApiException as error:
        status = int(error.status or 0)
        if status >= 500 or status in _BUSY or status == 0:
            raise TransientError(f"{where} answered {status} {error.reason}") from error
        hint = "log in, or name the profile's --namespace" if status in (401, 403) else ""
        raise UserError(f"{where} answered {status} {error.reason}: {_said(error)}", hint=hint) from error
    except (HTTPError, OSError) as error:
        raise TransientError(
            f"{where} cannot be reached: {error}",
            hint="kubectl -n kubeflow port-forward svc/ml-pipeline 8888, then --host http://localhost:8888",
        ) from error


def submit_run(
    client: Any, pipeline: Path, arguments: dict[str, Any], *, experiment: str, service_account: str = ""
) -> Submitted:
    """Submit one run, named after its run URI; one of that name that is going is found again instead."""
    name = str(arguments["run"]).rstrip("/").rpartition("/")[2]
    experiment_id = client.create_experiment(experiment).experiment_id
    for run in _all(client.list_runs, "runs", experiment_id):
        if run.display_name == name and run.state in GOING:
            return Submitted(run.run_id, name, run.state, _url(client, run.run_id), True)
    made = client.create_run_from_pipeline_package(
        str(pipeline), arguments=arguments, run_name=name, experiment_id=experiment_id,
        service_account=service_account or None,
    )  # fmt: skip
    return Submitted(made.run_id, name, "PENDING", _url(client, made.run_id), False)


def list_schedules(client: Any, experiment: str) -> list[Schedule]:
    """Every recurring run of the experiment."""
    try:
        experiment_id = client.get_experiment(experiment_name=experiment).experiment_id
    except ValueError:  # kfp's way to say that there is none
        return []
    return [_schedule(each) for each in _all(client.list_recurring_runs, "recurring_runs", experiment_id)]


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


def _all(page_of: Callable[..., Any], field: str, experiment_id: str) -> Iterator[Any]:
    token = ""
    while True:
        page = page_of(experiment_id=experiment_id, page_size=_PAGE, page_token=token)
        yield from getattr(page, field) or []
        token = page.next_page_token or ""
        if not token:
            return


def _url(client: Any, run_id: str) -> str:
    host = client._existing_config.host.rstrip("/")
    return f"{host}/#/runs/details/{run_id}"


def _said(error: Any) -> str:
    """The sentence in the body of the API's error."""
    try:
        body = json.loads(error.body)
        return str(body.get("error_message") or body.get("message") or body)
    except (ValueError, TypeError, AttributeError):
        return str(error.body or "")[:200]
