"""index, decode, train, evaluate, summarize: one step of a run at a time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eosin.cli.output import AsJson, Run, Settings, emit, lines, local_path, plain
from eosin.errors import EXIT_OK, EXIT_PERMANENT, UserError

Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only shard I of N (counted from 0).")
]

index_app = typer.Typer(help="Scan slides into an index. `eosin index inspect` looks into one.")


def register(app: typer.Typer) -> None:
    """Add the step verbs to `app`."""
    app.add_typer(index_app, name="index")
    app.command()(decode)
    app.command()(train)
    app.command()(evaluate)
    app.command()(summarize)


@index_app.callback(invoke_without_command=True)
def index(
    context: typer.Context,
    run: Annotated[str | None, typer.Option("--run", help="Index for this run and pin the snapshot.")] = None,
    slides: Annotated[str, typer.Option(help="Folder of slides, where no run is given.")] = "",
    index_uri: Annotated[str, typer.Option("--index", help="Where the index is published.")] = "",
    recipe: Annotated[str, typer.Option(help="Recipe whose index section is used without a run: demo.")] = "",
    settings: Settings = None,
    shard: Shard = None,
    merge: Annotated[int | None, typer.Option(metavar="N", help="Only merge N scanned shards.")] = None,
    scan: Annotated[
        str, typer.Option(help="Go on with this scan; without: with the slides as they are.")
    ] = "",
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="Make it the newest with far fewer slides than before, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Scan slides in shards and publish the snapshot."""
    if context.invoked_subcommand is not None:
        return
    from eosin import steps

    part = _shard(shard)
    if part is not None and merge is not None:
        raise UserError("--shard and --merge are two steps", hint="scan the shards, then merge them")
    if run is None:
        extra = ["index.allow_fewer_slides=true"] if allow_fewer else []
        source = steps.ConfigSource(recipe or "demo", [*(settings or ()), *extra], slides, index_uri)
        config = steps.resolve_config(source)
        result = steps.index_slides(config, part, merge, scan)
        place, after = config.index.uri, ""
    else:
        given = {"--slides": slides, "--index": index_uri, "--recipe": recipe, "--set": settings}
        given["--scan"] = scan
        ignored = [name for name, value in given.items() if value]
        if ignored:
            raise UserError(
                f"{', '.join(ignored)} and --run contradict: a run's configuration says what is indexed",
                hint=f"plan the run with them: eosin run --local --run {run} …",
            )
        result = steps.index_run(run, part, merge, allow_fewer=allow_fewer)
        place, after = "", f"eosin decode {run}, then eosin train {run}"
    emit(result, as_json=as_json, text=_index_text(result, place, after))


def _index_text(result: Any, place: str, after: str) -> str:
    """What was found; the whole index, or a shard of it."""
    if not result:
        return lines("the run has pinned its snapshot: nothing to scan", f"next: {after}")
    fields = plain(result)
    left_out = ", ".join(
        f"{number} {reason}" for reason, number in fields["reasons"].items() if reason != "ok"
    )
    found = f"{fields['num_ok']} of {fields['num_slides']} slides can be used"
    rest = f"left out: {left_out}" if left_out else ""
    if "snapshot_id" not in fields:
        return lines(f"shard scanned: {found}", rest, "next: the other shards, then --merge N")
    where = f"index: {place} (snapshot {fields['snapshot_id']})" if place else ""
    next_ = after or f"eosin index inspect {place}, or eosin index sheet {place} to see them all"
    tissue = f"{fields['tissue_mm2']:,.0f} mm² of tissue"
    return lines(f"{found}, with {tissue}", rest, where, f"next: {next_}")


@index_app.command("inspect")
def inspect(
    uri: Annotated[str, typer.Argument(metavar="INDEX", help="URI of the index.")],
    slide: Annotated[str | None, typer.Argument(help="One slide, by its key.")] = None,
    snapshot: Annotated[
        str | None, typer.Option(metavar="ID", help="This snapshot; none: the newest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What slides an index holds, and what is wrong with which."""
    from eosin.index.inspect import inspect_index

    result = inspect_index(uri, slide, snapshot)
    emit(result, as_json=as_json, text=str(result))


@index_app.command("sheet")
def sheet(
    uri: Annotated[str, typer.Argument(metavar="INDEX", help="URI of the index.")],
    out: Annotated[str, typer.Option(help="Where the page is written: a path or URI.")] = "slides.html",
    px: Annotated[int, typer.Option(help="Longest side of a thumbnail, in pixels.")] = 160,
    max_slides: Annotated[int, typer.Option(help="Show an even sample of at most so many.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """One HTML page of all slides, small, with the outlines of their tissue, to judge them by eye."""
    from eosin.index.sheet import write_sheet

    result = write_sheet(uri, out, side_px=px, max_slides=max_slides)
    text = f"{result.uri}: {result.num_shown} of {result.num_slides} slides, {result.num_bytes / 1e6:.2f} MB"
    emit(result, as_json=as_json, text=text)


def decode(
    run: Run,
    shard: Shard = None,
    name: Annotated[str, typer.Option(help="heldout, a set of patches.sets, or a new one.")] = "heldout",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Declare the set here: mpp=0.5, kind=sampled…"),
    ] = None,
    slide: Annotated[
        list[str] | None, typer.Option("--slide", metavar="PATTERN", help="Only slides of such keys.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decode a patch set (the held-out one, a grid, a sample) and publish it."""
    from eosin import steps
    from eosin.runs import load_run

    if shard is None:
        num_shards = load_run(run).patches.heldout.num_shards if name == "heldout" else 1
        pairs = [(i, num_shards) for i in range(num_shards)]
    else:
        pairs = [_shard(shard) or (0, 1)]
    manifests = [steps.decode(run, index, count, name, settings or (), slide or ()) for index, count in pairs]
    published = _patch_set(manifests[-1])
    emit(published, as_json=as_json, text=_patch_set_text(run, name, published))


def train(
    run: Run,
    backend: Annotated[str, typer.Option(help="local (torchrun here) or jobset (a cluster).")] = "local",
    as_json: AsJson = False,
) -> None:
    """Train to the end, continuing where the run stands."""
    from eosin import steps
    from eosin.layout import RunLayout
    from eosin.storage import join_uri

    done = steps.train(run, backend)
    loss = "" if done.final_loss is None else f", loss {done.final_loss:.4g}"
    newest = join_uri(run, RunLayout.teacher(done.models[-1])) if done.models else "none"
    text = lines(
        f"trained: {done.num_steps} steps, {len(done.models)} teachers{loss}",
        f"newest teacher: {newest}",
        f"next: eosin evaluate {run}",
    )
    emit(done, as_json=as_json, text=text)


def evaluate(
    run: Run,
    model: Annotated[str | None, typer.Option(help="Only this model: step-00000100, random-init.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, by its name.")] = None,
    as_json: AsJson = False,
) -> int:
    """Judge checkpoints on tasks and publish a record for each. Exit code 1 where one failed."""
    from eosin import steps

    pairs = steps.chosen_evaluations(run, model or "", task or "")
    records = [steps.evaluate(run, pair["model"], pair["task"]) for pair in pairs]
    failed = sum(record.status != "ok" for record in records)
    text = lines(
        *map(_record_line, records),
        f"{failed} of {len(records)} failed: the reason stands beside each" if failed else "",
        f"next: eosin summarize {run}",
    )
    emit({"records": records}, as_json=as_json, text=text)
    return EXIT_PERMANENT if failed else EXIT_OK


def summarize(run: Run, as_json: AsJson = False) -> None:
    """Write the report from what the run has published."""
    from eosin import steps

    result = steps.summarize(run)
    counts = f"{result.num_ok} evaluations in it"
    counts += f", {result.num_not_ok} failed or missing" if result.num_not_ok else ""
    text = lines(result.verdict, counts, f"report: {local_path(result.report)}")
    emit(result, as_json=as_json, text=text)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    shard, separator, count = text.partition("/")
    if not separator or not shard.isdigit() or not count.isdigit() or int(shard) >= int(count):
        raise UserError(f"--shard {text!r} is not I/N with I below N", hint="e.g. --shard 0/4")
    return int(shard), int(count)


def _patch_set_text(run: str, name: str, published: dict[str, Any]) -> str:
    if "num_patches" not in published:
        return lines(published["status"], "next: the other shards; the last one publishes the set")
    rejected = published["num_rejected"]
    next_ = f"next: eosin train {run}" if name == "heldout" else ""
    return lines(
        f"{name}: {published['num_patches']} patches of {published['num_slides']} slides",
        f"{rejected} could not be read or were rejected" if rejected else "",
        f"patch set: {run.rstrip('/')}/patches/{name}/",
        next_,
    )


def _patch_set(manifest: Any) -> dict[str, Any]:
    if manifest is None:
        return {"status": "shard published; other shards are missing"}
    shown = manifest.model_dump(mode="json", exclude={"rejected", "shards", "slides"})
    counts = {"num_shards": len(manifest.shards), "num_slides": len(manifest.slides)}
    return {"status": "published", **shown, **counts, "num_rejected": len(manifest.rejected)}


def _record_line(record: Any) -> str:
    values = "  ".join(f"{name} {value.mean:.4g}" for name, value in record.metrics.items())
    return f"{record.model:>16}  {record.task:<20} {record.status:<7} {values or record.reason}"
