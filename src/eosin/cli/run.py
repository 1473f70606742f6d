"""Verbs run, recipes and doctor: a whole pipeline, on this machine or as a plan, and what comes before it."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from eosin.cli.output import AsJson, Param, Settings, emit, say
from eosin.errors import EXIT_OK, EXIT_USER, UserError
from eosin.words import counted

Pipeline = Literal["pretrain", "evaluate", "retrain", "scaling_study", "decode", "embed"]


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
    params: Param = None,
    local: Annotated[bool, typer.Option("--local", help="Run on this machine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen.")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole pipeline: index, decode, train, evaluate, summarize. Or another one.

    `--pipeline evaluate` judges the teacher that `--teacher` names on the run's tasks, without training.
    The others take theirs by `--param`; docs/reference/pipelines.md lists them.
    """
    from eosin.submission import PipelineRequest, plan_request, run_locally

    request = PipelineRequest(
        pipeline, run_uri, recipe, slides, index, settings or (), teacher=teacher, params=params or ()
    )
    if not local and not dry_run:
        raise UserError(
            "say where to run: --local runs on this machine",
            hint=f"on a cluster: eosin submit {pipeline} --run {quote(run_uri)}, see `eosin submit --help`",
        )
    result = plan_request(request, here=local) if dry_run else run_locally(request)
    emit(result, as_json=as_json, text=str(result))


recipes_app = typer.Typer(name="recipes", no_args_is_help=True, help="Complete configurations to begin from.")


@recipes_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The recipes that ship with eosin."""
    from eosin.recipes import list_recipes

    recipes = list_recipes()
    text = "\n".join(f"{recipe.name:<28} {recipe.description}" for recipe in recipes)
    emit({"recipes": recipes}, as_json=as_json, text=text)


@recipes_app.command("show")
def show(recipe: str, as_json: AsJson = False) -> None:
    """Every key of a recipe, defaults included."""
    from eosin.config import dump_config, load_config
    from eosin.recipes import load_recipe

    text, source = load_recipe(recipe)
    config = load_config(text, source=source)
    emit(config, as_json=as_json, text=dump_config(config).rstrip())


@recipes_app.command("copy")
def copy(
    recipe: str,
    target: Annotated[Path, typer.Argument(help="A file, or a folder to put it in.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a recipe to a file of your own, to edit."""
    from eosin.recipes import copy_recipe

    path = copy_recipe(recipe, target)
    emit({"path": str(path)}, as_json=as_json, text=str(path))


_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


def doctor(
    uri: Annotated[str | None, typer.Option(help="A bucket or folder to try: s3://bucket/prefix.")] = None,
    recipe: Annotated[
        str, typer.Option(help="Try the slides that a recipe (a name, a file or a URI) names.")
    ] = "",
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Check the cluster as well, and --uri from a pod in it.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Check libraries, GPU, credentials and the bucket. Each failure comes with its fix."""
    from eosin.doctor import run_checks
    from eosin.step_process import take_store_access
    from eosin.steps import ConfigSource, resolve_config

    take_store_access()  # as the steps of a pipeline do
    found: list[Any] = []
    slides = resolve_config(ConfigSource(recipe)).slides if recipe else None
    for check in run_checks(uri, slides, cluster=cluster):
        found.append(check)
        if not as_json:  # each as it is made: importing the libraries takes a while
            say(_line(check))
    failed, warned = (sum(check.status == status for check in found) for status in ("fail", "warn"))
    emit({"checks": found}, as_json=as_json, text=_verdict(failed, warned))
    return EXIT_USER if failed else EXIT_OK


def _verdict(num_failed: int, num_warned: int) -> str:
    if num_failed:
        return f"\n{counted(num_failed, 'check')} failed: mend what ✗ marks"
    rest = f"; without what ! marks ({num_warned}), not everything does" if num_warned else ""
    return f"\neosin works here{rest}\nnext: eosin demo, or eosin run --help"


def _line(check: Any) -> str:
    line = f"{_MARKS[check.status]} {check.name:<22} {check.detail}"
    return line if check.status == "ok" or not check.fix else f"{line}\n{'':25}→ {check.fix}"
