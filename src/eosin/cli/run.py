"""eosin run: the whole pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from eosin.cli.output import AsJson, Settings, emit
from eosin.errors import UserError

Pipeline = Literal["pretrain", "evaluate"]


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(run)


def run(
    run_uri: Annotated[str, typer.Option("--run", help="The run's URI; the same again continues it.")],
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe's name, a file, or the URI of a configuration; none: the run's own."),
    ] = "",
    pipeline: Annotated[Pipeline, typer.Option(help="Which pipeline.")] = "pretrain",
    teacher: Annotated[
        str, typer.Option(help="For evaluate: URI of a teacher's folder, or of a run: its newest.")
    ] = "",
    slides: Annotated[str, typer.Option(help="Folder of slides.")] = "",
    index: Annotated[str, typer.Option(help="URI of the index.")] = "",
    settings: Settings = None,
    local: Annotated[bool, typer.Option("--local", help="Run on this machine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen.")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole pipeline: index, decode, train, evaluate, summarize. Or another one.

    `--pipeline evaluate` judges the teacher that `--teacher` names on the run's tasks, without training.
    """
    from eosin import steps

    if (pipeline == "evaluate") != bool(teacher):
        raise UserError("--pipeline evaluate and --teacher go together", hint="give both, or neither")
    recipe = recipe or steps.own_recipe(run_uri)
    config = steps.resolve_config(recipe, settings=settings or (), slides=slides, index=index)
    if dry_run:
        if pipeline != "pretrain":
            raise UserError(f"--dry-run shows the pretrain pipeline only, not {pipeline}")
        from eosin.dry_run import plan_run

        plan = plan_run(config, run_uri)
        emit(plan, as_json=as_json, text=str(plan))
        return
    if not local:
        raise UserError(
            "say where to run: --local runs on this machine",
            hint=f"on a cluster: kfp run create -f pipelines/{pipeline}.yaml run={run_uri} recipe={recipe}",
        )
    from eosin.cli.local_run import run_pipeline
    from eosin.cli.pipeline import compiled_pipeline

    arguments: dict[str, Any] = {
        "run": run_uri,
        "recipe": recipe,
        "slides": slides,
        "index": index,
        "settings": list(settings or ()),
        "num_index_shards": config.index.num_shards,
        "num_decode_shards": config.patches.heldout.num_shards,
    }
    arguments |= {"teacher": teacher} if teacher else {"backend": "local"}
    run_pipeline(compiled_pipeline(pipeline), arguments)
    from eosin.status import run_status

    status = run_status(run_uri)
    emit(status, as_json=as_json, text=str(status))
