"""manifest: what training would put on a cluster, as YAML, for kubectl or a repository of manifests."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from eosin.cli.output import AsJson, Run, emit


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(manifest)


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
