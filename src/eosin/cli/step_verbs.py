"""Verbs of single steps: index, decode, embed, curate, train, evaluate, summarize."""

from shlex import quote
from typing import Annotated, Any

import typer

from eosin.cli.output import AsJson, Run, Settings, emit, key_values, lines, local_path, plain
from eosin.errors import EXIT_OK, EXIT_PERMANENT, UserError
from eosin.words import counted, size_text

Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only shard I of N (counted from 0).")
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check it all, say what would be read; write nothing.")
]

IndexUri = Annotated[str, typer.Argument(metavar="INDEX", help="URI of the index.")]
SlidePatterns = Annotated[
    list[str] | None, typer.Option("--slide", metavar="PATTERN", help="Only slides of such keys.")
]

_LEFT_OUT_SHOWN = 50

index_app = typer.Typer(name="index", help="Scan slides into an index. `eosin index inspect` looks into one.")


@index_app.callback(invoke_without_command=True)
def index(
    context: typer.Context,
    run: Annotated[str | None, typer.Option("--run", help="Index for this run and pin the snapshot.")] = None,
    slides: Annotated[str, typer.Option(help="Folder of slides, where no run is given.")] = "",
    index_uri: Annotated[str, typer.Option("--index", help="Where the index is published.")] = "",
    recipe: Annotated[str, typer.Option(help="Recipe whose index section is used without a run: demo.")] = "",
    contours: Annotated[
        str, typer.Option(help="Folder of SLIDE.geojson: masks drawn by hand, in place of those found.")
    ] = "",
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

    source = steps.ConfigSource(recipe, settings or (), slides, index_uri)
    place, result = steps.index(
        run, source, _shard(shard), merge, scan_id=scan, contours=contours, allow_fewer=allow_fewer
    )
    after = "" if run is None else f"eosin decode {quote(run)}, then eosin train {quote(run)}"
    emit(result, as_json=as_json, text=_index_text(result, place, after))


def _index_text(result: Any, place: str, after: str) -> str:
    """What was found; the whole index, or a shard of it."""
    if not result:
        return lines("the run has pinned its snapshot: nothing to scan", f"next: {after}")
    fields = plain(result)
    left_out = ", ".join(
        f"{number} {reason}" for reason, number in fields["reasons"].items() if reason != "ok"
    )
    found = f"{fields['num_ok']} of {counted(fields['num_slides'], 'slide')} can be used"
    rest = f"left out: {left_out}" if left_out else ""
    if "snapshot_id" not in fields:
        return lines(f"shard scanned: {found}", rest, "next: the other shards, then --merge N")
    where = f"index: {place} (snapshot {fields['snapshot_id']})" if place else ""
    next_ = (
        after or f"eosin index inspect {quote(place)}, or eosin index sheet {quote(place)} to see them all"
    )
    tissue_mm2 = fields["tissue_mm2"]
    tissue = f"{tissue_mm2:,.0f} mm² of tissue" if tissue_mm2 >= 10 else f"{tissue_mm2:.3g} mm² of tissue"
    return lines(f"{found}, with {tissue}", rest, where, f"next: {next_}")


@index_app.command("inspect")
def inspect(
    uri: IndexUri,
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
    uri: IndexUri,
    out: Annotated[str, typer.Option(help="Where the page is written: a path or URI.")] = "slides.html",
    px: Annotated[int, typer.Option(help="Longest side of a thumbnail, in pixels.")] = 160,
    max_slides: Annotated[int, typer.Option(help="Show an even sample of at most so many.")] = 2000,
    page: Annotated[
        int | None, typer.Option(help="In place of a sample: this page of so many, from 1.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One HTML page of all slides, small, with the outlines of their tissue, to judge them by eye."""
    from eosin.index.sheet import write_sheet

    result = write_sheet(uri, out, side_px=px, max_slides=max_slides, page=page)
    shown = f"{result.num_shown} of {counted(result.num_slides, 'slide')}"
    text = f"{result.uri}: {shown}, {size_text(result.num_bytes)}"
    emit(result, as_json=as_json, text=text)


@index_app.command("pictures")
def pictures(
    uri: IndexUri,
    out: Annotated[str, typer.Option(help="Folder or URI for the files, SLIDE.jpg.")],
    slide: SlidePatterns = None,
    num_patches: Annotated[int, typer.Option(help="Patches drawn in, of each slide.", min=0)] = 16,
    settings: Annotated[
        list[str] | None, key_values("--set", "How patches are drawn: patches.mpp=[0.5]…")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A picture a slide: thumbnail, outline of the tissue, and a sample of the patches drawn from it."""
    from eosin.config import load_config
    from eosin.patches.slide_pictures import write_slide_pictures

    config = load_config("", overrides=settings or ()).patches
    result = write_slide_pictures(uri, out, config, slide or ("*",), num_patches=num_patches)
    without = f"; {counted(result.num_without, 'slide')} without a thumbnail" if result.num_without else ""
    emit(result, as_json=as_json, text=f"{result.uri}: {counted(result.num_pictures, 'picture')}{without}")


@index_app.command("contours")
def contours(
    uri: IndexUri,
    out: Annotated[str, typer.Option(help="Folder or URI for the files, SLIDE.geojson.")],
    slide: SlidePatterns = None,
    as_json: AsJson = False,
) -> None:
    """Tissue contours as GeoJSON, one file a slide, which QuPath opens as annotations."""
    from eosin.index.contours import write_contours

    result = write_contours(uri, out, slide or ("*",))
    text = f"{result.uri}: {counted(result.num_contours, 'contour')} of {counted(result.num_slides, 'slide')}"
    emit(result, as_json=as_json, text=text)


def decode(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run's URI; or give --index and --out.")
    ] = None,
    index_uri: Annotated[
        str, typer.Option("--index", help="Decode from this index, without a run, into --out.")
    ] = "",
    out: Annotated[str, typer.Option(help="With --index: where the set is published.")] = "",
    shard: Shard = None,
    name: Annotated[str, typer.Option(help="heldout, a set of patches.sets, or a new one.")] = "heldout",
    settings: Annotated[
        list[str] | None, key_values("--set", "Declare the set here: mpp=0.5, kind=sampled…")
    ] = None,
    slide: SlidePatterns = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Decode a patch set (the held-out one, a grid, a sample) of a run or an index, and publish it."""
    from eosin import steps

    if run is None and not (index_uri and out):
        raise UserError("nothing to decode from", hint="give a run, or --index and --out")
    if run is not None and (index_uri or out):
        raise UserError("a run has its own index and place", hint="leave --index and --out, or RUN, away")
    if dry_run:
        from eosin.dry_run import plan_decoding

        plan = plan_decoding(run or out, index_uri, name, settings or (), slide or ())
        emit(plan, as_json=as_json, text=str(plan))
        return
    if run is None:
        part = _shard(shard) or (0, 1)
        found = steps.decode_index(index_uri, out, *part, name, settings or (), slide or ())
    else:
        found = steps.decode_run(run, _shard(shard), name, settings or (), slide or ())
    published = _patch_set(found)
    emit(published, as_json=as_json, text=_patch_set_text(run or out, name, published))


def embed(
    model: Annotated[
        str,
        typer.Option(help="A run, a teacher's folder, timm:NAME, or timm:ARCH@URI of a safetensors file."),
    ],
    out: Annotated[str, typer.Option(help="Where the features are published, one file a slide.")],
    index_uri: Annotated[str, typer.Option("--index", help="The index whose slides are embedded.")] = "",
    patches: Annotated[
        str, typer.Option(help="In place of an index: the folder of a patch set, OUT/patches/NAME.")
    ] = "",
    mpp: Annotated[
        float | None, typer.Option(help="With --index: magnification in µm a pixel; without: 0.5.")
    ] = None,
    patch_px: Annotated[
        int | None, typer.Option(help="With --index: side of the patches; without: of the model's pictures.")
    ] = None,
    overlap_px: Annotated[
        int | None, typer.Option(help="With --index: pixels that a patch shares with the next; without: 0.")
    ] = None,
    min_foreground: Annotated[
        float | None, typer.Option(help="With --index: smallest share of tissue in a patch; without: 0.4.")
    ] = None,
    slide: SlidePatterns = None,
    format: Annotated[
        str, typer.Option(help="hdf5 (as CLAM and TRIDENT read it), parquet or safetensors.")
    ] = "hdf5",
    batch_size: Annotated[int, typer.Option(help="Patches the model sees at once.")] = 64,
    read_out: Annotated[
        str, typer.Option(help="last, or the class tokens of N blocks: cls_last_N, cls_last_N_mean_patch.")
    ] = "last",
    settings: Annotated[
        list[str] | None, key_values("--set", "How slides are read: patches.reader=stage…")
    ] = None,
    shard: Shard = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Embed the slides of an index or a patch set, without a run; what is there already is left alone."""
    from eosin import steps
    from eosin.evaluation.embed_index import EmbedRequest

    grid = {"mpp": mpp, "patch_px": patch_px, "overlap_px": overlap_px, "min_foreground": min_foreground}
    given = [f"{name}={value}" for name, value in grid.items() if value is not None]
    request = EmbedRequest(
        model=model, out_uri=out, index_uri=index_uri, patches_uri=patches, slides=tuple(slide or ("*",)),
        format=format, batch_size=batch_size, read_out=read_out, settings=(*given, *(settings or ())),
    )  # fmt: skip
    index, count = _shard(shard) or (0, 1)
    if dry_run:
        from eosin.dry_run import plan_embedding

        plan = plan_embedding(request)
        emit(plan, as_json=as_json, text=str(plan))
        return
    features = _features(steps.embed(request, index, count))
    emit(features, as_json=as_json, text=_features_text(out, features))


def curate(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="Where `eosin embed` published them.")],
    out: Annotated[str, typer.Option(help="Where the clusters are published.")],
    clusters: Annotated[
        str, typer.Option(metavar="N,…", help="Clusters of each level, the finest first: 1000,100,10.")
    ],
    seed: Annotated[int, typer.Option(help="Of the draws of k-means.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Cluster patches by their features, for training that draws rare tissue as often as common."""
    from eosin import steps
    from eosin.evaluation.curate import CurateRequest

    levels = [part.strip() for part in clusters.split(",")]
    if not all(part.isdigit() for part in levels):
        raise UserError(f"--clusters {clusters!r} is not of the form 1000,100,10")
    found = steps.curate(CurateRequest(features, out, tuple(map(int, levels)), seed))
    text = lines(
        f"{counted(sum(found.sizes), 'patch')} in {counted(found.num_clusters[0], 'cluster')}, the "
        f"smallest of {min(found.sizes)}, the largest of {max(found.sizes)}",
        f"next: a recipe with patches.curation.clusters={out}",
    )
    emit(found, as_json=as_json, text=text)


def train(
    run: Run,
    backend: Annotated[str, typer.Option(help="local (torchrun here) or jobset (a cluster).")] = "local",
    prolong: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Train on to so many steps in all.")
    ] = None,
    settings: Annotated[
        list[str] | None, key_values("--set", "From the newest checkpoint on: train.optimizer.lr=1e-4…")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train to the end, continuing where the run stands; on purpose for longer, or at another rate."""
    from eosin import steps
    from eosin.layout import RunLayout
    from eosin.storage import join_uri

    longer = [] if prolong is None else [f"train.num_steps={prolong}"]
    done = steps.train(run, backend, (*longer, *(settings or ())))
    loss = "" if done.final_loss is None else f", loss {done.final_loss:.4g}"
    newest = join_uri(run, RunLayout.teacher(done.models[-1])) if done.models else "none"
    text = lines(
        f"trained: {counted(done.num_steps, 'step')}, {counted(len(done.models), 'teacher')}{loss}",
        f"newest teacher: {newest}",
        f"next: eosin evaluate {quote(run)}",
    )
    emit(done, as_json=as_json, text=text)


def evaluate(
    run: Run,
    model: Annotated[str | None, typer.Option(help="Only this model: step-00000100, random-init.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, by its name.")] = None,
    shard: Shard = None,
    as_json: AsJson = False,
) -> int:
    """Judge checkpoints on tasks and publish a record for each. Exit code 1 where one failed."""
    from eosin import steps

    records = steps.evaluate_chosen(run, model or "", task or "", _shard(shard) or (0, 1))
    failed = sum(record.status != "ok" for record in records)
    text = lines(
        *map(_record_line, records),
        f"{failed} of {len(records)} failed: the reason stands beside each" if failed else "",
        f"next: eosin summarize {quote(run)}",
    )
    emit({"records": records}, as_json=as_json, text=text)
    return EXIT_PERMANENT if failed else EXIT_OK


def summarize(run: Run, as_json: AsJson = False) -> None:
    """Write the report from what the run has published."""
    from eosin import steps

    result = steps.summarize(run)
    counts = f"{counted(result.num_ok, 'evaluation')} in it"
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
    rejected, folder = published["num_rejected"], f"{run.rstrip('/')}/patches/{name}/"
    next_ = f"next: eosin train {quote(run)}" if name == "heldout" else ""
    return lines(
        f"{name}: {counted(published['num_patches'], 'patch')} of "
        f"{counted(published['num_slides'], 'slide')}",
        f"{rejected} could not be read or were rejected" if rejected else "",
        *_left_out_lines(published["left_out"], f"{folder}manifest.json"),
        f"patch set: {folder}",
        next_,
    )


def _features(manifest: Any) -> dict[str, Any]:
    if manifest is None:
        return {"status": "slides embedded; those of other shards are missing"}
    return {"status": "published", **manifest.spec.model_dump(mode="json"), "num_slides": manifest.num_slides,
            "left_out": {each.slide: each.reason for each in manifest.left_out}}  # fmt: skip


def _features_text(out: str, features: dict[str, Any]) -> str:
    if "num_slides" not in features:
        return lines(features["status"], "next: the other shards; the last one publishes the manifest")
    folder = out.rstrip("/")
    return lines(
        f"features of {counted(features['num_slides'], 'slide')}: {folder}/features/",
        *_left_out_lines(features["left_out"], f"{folder}/manifest.json"),
    )


def _left_out_lines(left_out: dict[str, str], manifest: str) -> list[str]:
    """Which slides are left out, each with its reason."""
    named = [f"  {slide}: {reason}" for slide, reason in left_out.items()]
    more = [f"  … all are in {manifest}"] if len(named) > _LEFT_OUT_SHOWN else []
    return [f"{counted(len(named), 'slide')} left out:", *named[:_LEFT_OUT_SHOWN], *more] if named else []


def _patch_set(manifest: Any) -> dict[str, Any]:
    if manifest is None:
        return {"status": "shard published; other shards are missing"}
    shown = manifest.model_dump(mode="json", exclude={"rejected", "shards", "slides", "left_out"})
    shown["left_out"] = {each.slide: each.reason for each in manifest.left_out}
    counts = {"num_shards": len(manifest.shards), "num_slides": len(manifest.slides)}
    return {"status": "published", **shown, **counts, "num_rejected": len(manifest.rejected)}


def _record_line(record: Any) -> str:
    values = "  ".join(f"{name} {value.mean:.4g}" for name, value in record.metrics.items())
    return f"{record.model:>16}  {record.task:<20} {record.status:<7} {values or record.reason}"
