"""Pipelines to a Kubeflow cluster (submit, schedule), and what trains a run there, as a file (manifest)."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from eosin.cli.output import AsJson, Host, Param, PodSettings, PodsFile, Run, Settings, emit, lines
from eosin.errors import UserError
from eosin.kubeflow.parameters import (
    arguments_of,
    compiled_pipeline,
    default_of,
    own_pipeline,
    require_acceptable_size,
    takes,
)
from eosin.kubeflow.task_pods import placed, read_pods

if TYPE_CHECKING:
    from eosin.submission import CheckedSubmission

_MAX_NAME = 63
schedule_app = typer.Typer(
    name="schedule", no_args_is_help=True, help="Recurring pipelines: create, list, delete."
)

Namespace = Annotated[str, typer.Option(help="Profile, on a Kubeflow of many users.")]
Experiment = Annotated[str, typer.Option(help="Kubeflow experiment the runs belong to.")]
Account = Annotated[str, typer.Option(help="Service account of all tasks; none: Kubeflow's default.")]
Pipeline = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE", help="pretrain, evaluate, retrain, scaling_study, decode, embed, or a file."
    ),
]
RunUri = Annotated[str, typer.Option("--run", help="The run's URI; {date} becomes the day.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


def submit(
    pipeline: Pipeline,
    run: RunUri,
    recipe: Annotated[str, typer.Option(help="A recipe's name, a file (it goes along), or a URI.")] = "",
    slides: Annotated[str, typer.Option(help="Folder of slides.")] = "",
    index: Annotated[str, typer.Option(help="URI of the index.")] = "",
    settings: Settings = None,
    params: Param = None,
    pod: PodSettings = None,
    pods: PodsFile = None,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "eosin",
    service_account: Account = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check it all.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a pipeline to Kubeflow. The same again, while it is going, finds it."""
    from eosin.kubeflow.client import connect_kubeflow, kubeflow_errors
    from eosin.kubeflow.runs import submit_run
    from eosin.records import KubeflowRun
    from eosin.run_control import note_submission
    from eosin.runs import dated

    path = compiled_pipeline(pipeline)
    given = {"run": dated(run), "recipe": recipe or None, "slides": slides or None, "index": index or None,
             "settings": list(settings) if settings else None}  # fmt: skip
    checked = _checked(path, arguments_of(path, given, params or ()), namespace, publish=not dry_run)
    arguments = checked.arguments
    if dry_run:
        with placed(path, read_pods(pod or (), pods)) as compiled:
            require_acceptable_size(compiled, arguments)
        text = lines(f"{given['run']} can be submitted; nothing was", *checked.notes)
        emit(checked, as_json=as_json, text=text)
        return
    with placed(path, read_pods(pod or (), pods)) as compiled, kubeflow_errors(host):
        require_acceptable_size(compiled, arguments)
        client = connect_kubeflow(host, namespace)
        made = submit_run(client, compiled, arguments, experiment=experiment, service_account=service_account)
    note = note_submission(arguments["run"], KubeflowRun(
        namespace=namespace, run_id=made.run_id, pipeline=pipeline, host=host
    ))  # fmt: skip
    text = lines(str(made), *checked.notes, note, f"next: eosin status {quote(arguments['run'])}")
    emit(made, as_json=as_json, text=text)


def _checked(
    path: Path, arguments: dict[str, Any], namespace: str, *, publish: bool = True
) -> "CheckedSubmission":
    from eosin.submission import check_submission

    return check_submission(
        own_pipeline(path), arguments,
        recipe=default_of(path, "recipe") or "", namespace=namespace, publish=publish,
    )  # fmt: skip


@schedule_app.command()
def create(
    name: Name,
    pipeline: Pipeline,
    run: RunUri,
    cron: Annotated[str, typer.Option(help="Five fields, in Kubeflow's time zone: '0 3 * * 0'.")],
    settings: Settings = None,
    params: Param = None,
    pod: PodSettings = None,
    pods: PodsFile = None,
    paused: Annotated[bool, typer.Option("--paused", help="There, but off.")] = False,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "eosin",
    service_account: Account = "",
    as_json: AsJson = False,
) -> None:
    """Make a pipeline recur, one run at a time and none made up for. The same again changes nothing.

    Where anything differs, the pipeline included, the schedule is made anew; what runs goes on.
    """
    from eosin.kubeflow.client import connect_kubeflow, kubeflow_errors
    from eosin.kubeflow.runs import ScheduleSpec, ensure_schedule, six_fields

    if not 0 < len(name) <= _MAX_NAME:
        raise UserError(f"a schedule's name has 1 to {_MAX_NAME} characters, not {len(name)}")
    path = compiled_pipeline(pipeline)
    _require_a_new_run_each_time(pipeline, run, takes(path))
    given = {"run": run, "settings": list(settings) if settings else None}
    checked = _checked(path, arguments_of(path, given, params or ()), namespace)
    with placed(path, read_pods(pod or (), pods)) as compiled, kubeflow_errors(host):
        require_acceptable_size(compiled, checked.arguments)
        spec = ScheduleSpec(name, compiled, six_fields(cron), checked.arguments, not paused, service_account)
        made, done = ensure_schedule(connect_kubeflow(host, namespace), experiment, spec)
    text = lines(
        f"{done}: {made}", *checked.notes, f"next: eosin schedule list --experiment {quote(experiment)}"
    )
    emit({"done": done, "schedule": made}, as_json=as_json, text=text)


@schedule_app.command("list")
def list_(
    host: Host = "", namespace: Namespace = "", experiment: Experiment = "eosin", as_json: AsJson = False
) -> None:
    """The schedules of an experiment."""
    from eosin.kubeflow.client import connect_kubeflow, kubeflow_errors
    from eosin.kubeflow.runs import list_schedules

    with kubeflow_errors(host):
        found = list_schedules(connect_kubeflow(host, namespace), experiment)
    text = "\n".join(map(str, found)) or f"no schedule in experiment {experiment}"
    emit({"schedules": found}, as_json=as_json, text=text)


@schedule_app.command()
def delete(
    name: Name,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "eosin",
    as_json: AsJson = False,
) -> None:
    """Delete a schedule; runs that are going go on. One that is not there is no error."""
    from eosin.kubeflow.client import connect_kubeflow, kubeflow_errors
    from eosin.kubeflow.runs import delete_schedule

    with kubeflow_errors(host):
        number = delete_schedule(connect_kubeflow(host, namespace), experiment, name)
    emit({"deleted": number}, as_json=as_json, text=f"{name}: {number} deleted")


def _require_a_new_run_each_time(pipeline: str, run: str, names: frozenset[str]) -> None:
    if "registry" not in names:
        raise UserError(
            f"pipeline {pipeline} cannot recur: its run has one name",
            hint="retrain can: it names each run after its day",
        )
    if "{date}" not in run:
        raise UserError(
            f"every run of the schedule would be {run}",
            hint="put {date} in it: s3://bucket/runs/weekly-{date}",
        )


def manifest(
    run: Run,
    image: Annotated[str, typer.Option(help="Image of the training pods; none: cluster.image.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print what trains a planned and indexed run on a cluster; asks no cluster and changes nothing."""
    from eosin.cluster.jobset import render_disruption_budget, render_jobset
    from eosin.cluster.spot_jobs import render_spot_jobs
    from eosin.runs import load_pin, load_run

    config = load_run(run)
    load_pin(run)
    image = image or config.cluster.image
    objects: list[dict[str, Any]] = [render_disruption_budget(config, run)]
    jobset = render_jobset(config, run, image=image)
    objects += [jobset, *render_spot_jobs(config, run, image=image, jobset=jobset)]
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    emit({"objects": objects}, as_json=as_json, text=text.rstrip("\n"))
