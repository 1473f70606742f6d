"""doctor: what is missing here, and how to mend it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eosin.cli.output import AsJson, emit

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(doctor)


def doctor(
    uri: Annotated[str | None, typer.Option(help="A bucket or folder to try: s3://bucket/prefix.")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Check the cluster as well.")] = False,
    as_json: AsJson = False,
) -> int:
    """Check libraries, GPU, credentials and the bucket; each failure comes with its fix."""
    from eosin.doctor import run_checks

    checks: list[Any] = [*run_checks(uri)]
    if cluster:
        from eosin.cluster.checks import run_cluster_checks

        checks += run_cluster_checks()
    lines = [f"{_MARKS[check.status]} {check.name:<22} {check.detail}" for check in checks]
    lines = [
        line if check.status == "ok" or not check.fix else f"{line}\n{'':25}→ {check.fix}"
        for line, check in zip(lines, checks, strict=True)
    ]
    emit({"checks": checks}, as_json=as_json, text="\n".join(lines))
    return 2 if any(check.status == "fail" for check in checks) else 0
