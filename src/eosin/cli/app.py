"""The `eosin` command: verbs in files of their own, errors rendered here."""

import os
import shlex
import sys
from typing import Any

import typer
from pydantic import ValidationError

from eosin import __version__
from eosin.cli import demo, inspect, registry, run, step_verbs, submit
from eosin.cli.output import ReaderGone, render_error, say, show_failure
from eosin.config.load import first_words
from eosin.errors import EXIT_INTERRUPTED, EXIT_USER, EosinError, UserError
from eosin.observability import show_warnings

app = typer.Typer(
    name="eosin",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Pretrain pathology foundation models, straight from whole-slide images in S3.",
)
# typer carries a click of its own, and does not export the base of click's errors.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

_VERBS = (
    step_verbs.index_app, step_verbs.decode, step_verbs.embed, step_verbs.curate, step_verbs.train,
    step_verbs.evaluate, step_verbs.summarize, run.run, submit.submit, submit.manifest,
    submit.schedule_app, inspect.status, inspect.logs, inspect.cancel, inspect.resume, run.recipes_app,
    registry.registry_app, registry.export, run.doctor, inspect.gc, inspect.delete, demo.demo_app,
)  # fmt: skip
"""In the order in which `eosin --help` lists them; a group brings its name along."""

for verb in _VERBS:
    if isinstance(verb, typer.Typer):
        app.add_typer(verb)
    else:
        app.command()(verb)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        say(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `eosin` command."""
    show_warnings()
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns the exit code (0 done, 2 user's error, 75 transient, 1 otherwise)."""
    # Before the command line is understood: what cannot be understood is answered in JSON as well.
    as_json = "--json" in arguments
    try:
        command = typer.main.get_command(app)
        _require_options_once(command, arguments)
        result = command(arguments, standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            return _show_interrupted(as_json)
        return result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _show_interrupted(as_json)
    except ReaderGone:
        return 0
    except Exception as error:
        if isinstance(error, _ClickError):
            return _show_misuse(error, as_json=as_json)
        return render_error(_with_demo_hint(error, arguments), as_json=as_json)


def _require_options_once(command: Any, arguments: list[str]) -> None:
    """Raises `UserError` for an option that takes one value and stands there twice: click takes the last."""
    given: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        name, has_value, value = argument.partition("=")
        if argument == "--":
            return
        if argument in getattr(command, "commands", ()):
            command = command.commands[argument]
        option = next((each for each in command.params if name in each.opts), None)
        if option is None or option.param_type_name != "option" or option.is_flag:
            continue
        value = value if has_value else next(left, "")
        if not option.multiple and given.setdefault(name, value) != value:
            raise UserError(f"{name} is given twice: {given[name]} and {value}", hint="keep one of them")


def _with_demo_hint(error: Exception, arguments: list[str]) -> Exception:
    """The demo's bucket is on no S3 but the demo's own, whose server runs when it is asked for."""
    of_demo = any(argument.startswith("s3://eosin-demo") for argument in arguments)
    if of_demo and isinstance(error, EosinError) and "AWS_ENDPOINT_URL" not in os.environ:
        error.hint = f"that bucket is the demo's: eosin demo exec -- eosin {shlex.join(arguments)}"
    return error


def _show_interrupted(as_json: bool) -> int:
    return show_failure("interrupted", "the same command continues", EXIT_INTERRUPTED, as_json=as_json)


def _show_misuse(error: Exception, *, as_json: bool) -> int:
    """What click has to say of a command line that it cannot take, or the help where there was none."""
    if isinstance(error.__cause__, ValidationError):  # typer has pydantic read numbers, and repeats its words
        error.message = first_words(error.__cause__)  # type: ignore[attr-defined]  # of click, as below
    if as_json:
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]  # of click, which typer may bring under another name
        return show_failure(message, "`--help` after the verb shows what it takes", EXIT_USER, as_json=True)
    error.show()  # type: ignore[attr-defined]  # of click, which typer may bring under another name
    return EXIT_USER
