"""Registry verbs and export: which model is the current one, moving it, and handing a teacher over."""

from typing import Annotated

import typer

from eosin.cli.output import AsJson, emit

registry_app = typer.Typer(
    name="registry", no_args_is_help=True, help="The model registry: show, promote, rollback."
)

Registry = Annotated[
    str, typer.Argument(metavar="REGISTRY", help="The registry's URI: s3://bucket/registry.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model in the registry.")]


@registry_app.command()
def show(
    registry: Registry,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Only this model.")] = "",
    as_json: AsJson = False,
) -> None:
    """The current version of each model, and how it came to be."""
    from eosin.registry import entries

    found = entries.list_entries(registry, name)
    text = "\n".join(map(str, found)) or f"no model in {registry} yet"
    emit({"models": found}, as_json=as_json, text=text)


@registry_app.command()
def promote(
    registry: Registry,
    name: Name,
    run: Annotated[str, typer.Argument(metavar="RUN", help="URI of the run that trained the candidate.")],
    model: Annotated[str, typer.Option(help="Its teacher, step-00000100; none: the newest.")] = "",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK/METRIC", help="Must be won; none: balanced accuracy of every task."),
    ] = None,
    margin: Annotated[float, typer.Option(help="By how much at least.")] = 0.0,
    alpha: Annotated[float, typer.Option(help="Level of the paired test; 1: no test.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Make a run's teacher the current model, if it beats the one that is."""
    from eosin import steps

    result = steps.promote(registry, name, run, model=model, metrics=metric or (), margin=margin, alpha=alpha)
    emit(result, as_json=as_json, text=str(result))


@registry_app.command()
def rollback(
    registry: Registry,
    name: Name,
    to: Annotated[int | None, typer.Option(help="Version; none: the one before the current.")] = None,
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Point to an earlier version again; the one left stays in the history."""
    from eosin.registry.entries import roll_back

    entry = roll_back(registry, name, to=to, why=why)
    model = entry.current_model
    emit(entry, as_json=as_json, text=f"{name}: version {model.version} is the current one, {model.teacher}")


def export(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Folder of a teacher, or a run: its newest one.")
    ],
    to: Annotated[str, typer.Option(help="A folder, its URI, or hf://OWNER/NAME on the Hugging Face hub.")],
    licence: Annotated[str, typer.Option(help="For the model card: cc-by-nc-4.0.")] = "",
    public: Annotated[
        bool, typer.Option("--public", help="A repository that has to be made is open to all.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a teacher, with a model card of its data and figures, where timm finds it."""
    from eosin.models.hand_over import hand_over
    from eosin.preflight import check_teacher

    folder = check_teacher(teacher)
    files = hand_over(folder, to, licence=licence, private=not public)
    result = {"teacher": folder, "to": to, "files": files}
    emit(result, as_json=as_json, text=f"{folder} is at {to}: {', '.join(files)}")
