"""Verbs on a run: what it has come to (status, logs), an end to it (cancel, gc, delete), and resume."""

from shlex import quote
from typing import Annotated

import typer

from eosin.cli.output import AsJson, ClusterNamespace, Context, Host, Run, emit


def status(
    run: Run,
    live: Annotated[
        bool | None, typer.Option("--live/--no-live", help="Ask the cluster too; neither: if one answers.")
    ] = None,
    namespace: ClusterNamespace = "",
    context: Context = "",
    as_json: AsJson = False,
) -> None:
    """How far a run has come, long after its pods are gone; and its JobSet, where a cluster is in reach."""
    from eosin.status import whole_status

    result = whole_status(run, live, namespace=namespace, context=context)
    emit(result, as_json=as_json, text=str(result))


def cancel(
    run: Run,
    host: Host = "",
    namespace: ClusterNamespace = "",
    context: Context = "",
    as_json: AsJson = False,
) -> None:
    """End a run on a cluster at any stage; what it saved stays, and the same run URI continues it."""
    from eosin.run_control import Where, cancel

    done = cancel(run, Where(host, namespace, context))
    emit(done, as_json=as_json, text=str(done))


def resume(run: Run, host: Host = "", namespace: ClusterNamespace = "", as_json: AsJson = False) -> None:
    """Have Kubeflow go on with a run that has failed; steps that are finished are kept."""
    from eosin.run_control import Where, resume

    run_id = resume(run, Where(host, namespace))
    text = f"Kubeflow run {run_id} goes on\nnext: eosin status {quote(run)}"
    emit({"run_id": run_id}, as_json=as_json, text=text)


def logs(
    run: Run,
    source: Annotated[str, typer.Option(help="Only this step: train, index-00000, evaluate-…")] = "",
    tail: Annotated[int | None, typer.Option(help="Only the last so many lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing as lines arrive.")] = False,
    as_json: AsJson = False,
) -> None:
    """The run's log lines, in order of time. With --follow, --json prints one object a line."""
    from eosin.status import follow_logs, read_logs

    if follow:
        for line in follow_logs(run, source):
            emit(line.fields, as_json=as_json, text=str(line))
    else:
        lines = read_logs(run, source, tail)
        text = "\n".join(map(str, lines)) or "no log line yet"
        emit({"lines": [line.fields for line in lines]}, as_json=as_json, text=text)


def gc(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.")],
    index: Annotated[list[str] | None, typer.Option(help="Indexes to clean as well.")] = None,
    registry: Annotated[
        list[str] | None, typer.Option(help="Registries whose models keep what they were trained on.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it only list.")] = False,
    min_age_h: Annotated[float, typer.Option(help="Never touch what is younger, in hours.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """List (or delete) what nothing needs any more."""
    from eosin.retention import collect

    result = collect(runs, index or [], registries=registry or [], delete=delete, min_age_s=min_age_h * 3600)
    emit(result, as_json=as_json, text=str(result))


def delete(
    run: Run,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only list.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Though it may be at work, or a registry knows its model.")
    ] = False,
    registry: Annotated[
        list[str] | None, typer.Option(help="Refuse where a model of this registry came from the run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what a run published, or with --yes delete it. Its index and anything not its own stay."""
    from eosin.retention.delete import delete_run

    result = delete_run(run, delete=yes, force=force, registries=registry or [])
    emit(result, as_json=as_json, text=str(result))
