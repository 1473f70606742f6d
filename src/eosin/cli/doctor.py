"""doctor: what is missing here, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

import typer

from eosin.cli.output import AsJson, emit, say
from eosin.errors import EXIT_OK, EXIT_USER

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(doctor)


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
    for check in chain(run_checks(uri, slides), _cluster_checks(uri) if cluster else ()):
        found.append(check)
        if not as_json:  # each as it is made: importing the libraries takes a while
            say(_line(check))
    failed, warned = (sum(check.status == status for check in found) for status in ("fail", "warn"))
    emit({"checks": found}, as_json=as_json, text=_verdict(failed, warned))
    return EXIT_USER if failed else EXIT_OK


def _verdict(num_failed: int, num_warned: int) -> str:
    if num_failed:
        return f"\n{num_failed} checks failed: mend what ✗ marks"
    rest = f"; without what ! marks ({num_warned}), not everything does" if num_warned else ""
    return f"\neosin works here{rest}\nnext: eosin demo, or eosin run --help"


def _cluster_checks(uri: str | None) -> Iterator[Any]:
    from eosin.cluster.cluster_checks import run_cluster_checks

    yield from run_cluster_checks(uri=uri or "")


def _line(check: Any) -> str:
    line = f"{_MARKS[check.status]} {check.name:<22} {check.detail}"
    return line if check.status == "ok" or not check.fix else f"{line}\n{'':25}→ {check.fix}"
