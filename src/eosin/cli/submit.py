"""Pipelines to a Kubeflow cluster (submit, schedule), and what trains a run there, as a file (manifest)."""

from shlex import quote
from typing import Annotated

import typer
import yaml

from eosin.cli.output import AsJson, Host, Param, PodSettings, PodsFile, Run, Settings, emit, lines

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
    from eosin import submission
    from eosin.runs import dated

    request = submission.PipelineRequest(
        pipeline, dated(run), recipe, slides, index, settings or (), params=params or (), pods=pod or (),
        pods_file=pods, host=host, namespace=namespace, experiment=experiment,
        service_account=service_account,
    )  # fmt: skip
    if dry_run:
        with submission.checked_pipeline(request, publish=False) as (_, checked):
            text = lines(f"{request.run} can be submitted; nothing was", *checked.notes)
            emit(checked, as_json=as_json, text=text)
        return
    made, notes = submission.submit(request)
    emit(made, as_json=as_json, text=lines(str(made), *notes, f"next: eosin status {quote(request.run)}"))


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
    from eosin import submission

    request = submission.PipelineRequest(
        pipeline, run, settings=settings or (), params=params or (), pods=pod or (), pods_file=pods,
        host=host, namespace=namespace, experiment=experiment, service_account=service_account,
    )  # fmt: skip
    made, done, notes = submission.schedule(request, name, cron, enabled=not paused)
    text = lines(f"{done}: {made}", *notes, f"next: eosin schedule list --experiment {quote(experiment)}")
    emit({"done": done, "schedule": made}, as_json=as_json, text=text)


@schedule_app.command("list")
def list_(
    host: Host = "", namespace: Namespace = "", experiment: Experiment = "eosin", as_json: AsJson = False
) -> None:
    """The schedules of an experiment."""
    from eosin.kubeflow.client import kubeflow_client
    from eosin.kubeflow.runs import list_schedules

    with kubeflow_client(host, namespace) as client:
        found = list_schedules(client, experiment)
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
    from eosin.kubeflow.client import kubeflow_client
    from eosin.kubeflow.runs import delete_schedule

    with kubeflow_client(host, namespace) as client:
        number = delete_schedule(client, experiment, name)
    emit({"deleted": number}, as_json=as_json, text=f"{name}: {number} deleted")


def manifest(
    run: Run,
    image: Annotated[str, typer.Option(help="Image of the training pods; none: cluster.image.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print what trains a planned and indexed run on a cluster; asks no cluster and changes nothing."""
    from eosin.cluster.training import render_training

    objects = render_training(run, image)
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    emit({"objects": objects}, as_json=as_json, text=text.rstrip("\n"))
