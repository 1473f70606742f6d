"""The steps of a run, one function each: what the command line and the Kubeflow components both call.

Every step takes the run's URI, finds what it needs there, is a no-op where its result is already
published, and can be killed and run again at any instant. Heavy imports happen inside a step, so that
an image needs only the libraries of the steps it runs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from eosin.config import RunConfig, difference, load_config
from eosin.config.cluster import ClusterConfig
from eosin.config.patches import HELD_OUT
from eosin.errors import TransientError, UserError
from eosin.layout import RANDOM_INIT, RunLayout, record_key
from eosin.observability import RunLog
from eosin.preflight import (
    EVALUATE_LIBRARIES,
    TRAIN_LIBRARIES,
    check_models,
    check_placement,
    check_plan,
    check_trainable,
    compare_pools,
    require_libraries,
)
from eosin.recipes import ConfigSource as ConfigSource  # steps are given one
from eosin.recipes import load_recipe
from eosin.records import (
    IndexPin,
    MetricRecord,
    PatchSetManifest,
    RetrainBase,
    SnapshotManifest,
    Study,
    TrainingDone,
    load_record,
)
from eosin.runs import (
    change_course,
    dated,
    exported_models,
    load_pin,
    load_run,
    load_study,
    pin_index,
    prepare_run,
)
from eosin.step_process import as_step, in_pod, publish_silent_failure
from eosin.storage import join_uri, open_store
from eosin.trackers import send_results
from eosin.words import nearest_of

if TYPE_CHECKING:
    from eosin.evaluation.curate import CurateRequest
    from eosin.evaluation.embed_index import EmbedRequest
    from eosin.records.index import ClustersManifest, FeaturesManifest
    from eosin.registry.promote import Promotion
    from eosin.registry.retrain import Gate
    from eosin.summary.study_report import StudyResult
    from eosin.summary.summarize import SummaryResult

__all__ = ["as_step"]

BACKENDS = ("local", "jobset")


def require_images(run_uri: str, images: str) -> None:
    """Refuse a pipeline that was not given every image, before anything of the run is published.

    `images` is "index=… train=… evaluate=…". Without this, a pod of a later step would wait for ever for an
    image that does not exist. Raises `UserError`.
    """
    missing = [name for name, _, image in (word.partition("=") for word in images.split()) if not image]
    if missing:
        raise UserError(
            f"run {run_uri} names no image for {', '.join(missing)}",
            hint="`make publish REGISTRY=…` writes dist/pipelines/, which name theirs; or give "
            + " ".join(f"{name}_image=…" for name in missing),
        )


def plan(run_uri: str, source: ConfigSource, backend: str = "") -> RunConfig:
    """Resolve the configuration and publish it with the run (or check it is the one published).

    Without a recipe it is the run's own. `backend`: where the run will train; empty: nowhere. Raises
    `UserError` where no run was begun either, and for what the run would refuse later, on the pools that the
    cluster presets too; then nothing is published.
    """
    return _publish_plan(run_uri, resolve_config(source, of_run=run_uri), backend)


def _publish_plan(run_uri: str, config: RunConfig, backend: str = "", *, known_slides: str = "") -> RunConfig:
    planned = check_plan(run_uri, config, known_slides=known_slides)
    check_models(planned.config)
    _check_training(run_uri, [planned.config], backend)
    config = prepare_run(run_uri, planned.config)
    if planned.changes:
        with RunLog("plan", open_store(run_uri)) as log:
            log.event("planned-again", detail=str(planned))
    return config


def _check_training(run_uri: str, configs: Iterable[RunConfig], backend: str) -> None:
    """Refuse before anything is indexed what a launcher would refuse after it."""
    presets: ClusterConfig | None = None
    for config in configs:
        if backend == "jobset" and in_pod():
            from eosin.cluster.api import connect
            from eosin.cluster.defaults import load_defaults

            presets = presets or load_defaults(connect(config.cluster.namespace))
            placed = check_placement(run_uri, config, presets)
            RunLog("plan").event("pools", **compare_pools(placed, run_uri))
        elif find_spec("torch") is not None:  # an image without: the workers refuse it
            check_trainable(config, here=False)


def plan_retrain(
    run_uri: str, registry_uri: str, name: str, source: ConfigSource, backend: str = ""
) -> RunConfig:
    """As `plan`, warm-started from the registry's current model and judged beside it.

    Without a recipe it is the current model's own. What the run set out from is settled with its first
    plan: planned again it begins with the same model, whatever was promoted meanwhile.
    """
    from eosin.registry.retrain import keep_base

    config, base = retrain_config(run_uri, registry_uri, name, source)
    known_slides = str(load_run(base.run).slides) if base.run else ""
    _check_training(run_uri, [check_plan(run_uri, config, known_slides=known_slides).config], backend)
    if keep_base(run_uri, base) != base:
        raise TransientError(f"run {run_uri} is being planned by somebody else", hint="run it again")
    return _publish_plan(run_uri, config, backend, known_slides=known_slides)


def retrain_config(
    run_uri: str, registry_uri: str, name: str, source: ConfigSource
) -> tuple[RunConfig, RetrainBase]:
    """What `plan_retrain` would publish. Raises `UserError` where neither recipe nor model is there."""
    from eosin.registry.retrain import find_base, warm_started

    base = find_base(registry_uri, name, run_uri)
    if not source.recipe and base.version is None:
        raise UserError(
            f"registry {registry_uri} has no model {name} to retrain", hint="name the recipe of the first one"
        )
    return warm_started(resolve_config(source, of_run=base.run), base), base


def plan_study(
    study_uri: str, vary: str, values: Iterable[Any], source: ConfigSource, backend: str = ""
) -> Study:
    """Publish a study and the configuration of each of its runs. Raises `UserError` as `plan` does."""
    from eosin import study

    values = list(values)
    config = check_plan(study_uri, resolve_config(source, of_run=study_uri)).config
    variants = study.study_of(study_uri, config, vary, values)[1]
    _check_training(study_uri, [each.config for each in variants], backend)
    return study.plan_study(study_uri, config, vary, values)


def pin_variants(study_uri: str) -> list[str]:
    """Pin the study's snapshot to each of its runs; returns their URIs."""
    from eosin import study

    return study.pin_variants(study_uri)


def study_report(study_uri: str) -> "StudyResult":
    """Write one report over all runs of a study."""
    from eosin.summary.study_report import report_study

    with RunLog("summarize", open_store(study_uri)) as log:
        return report_study(study_uri, log=log)


def resolve_config(source: ConfigSource, *, of_run: str = "") -> RunConfig:
    """The configuration that `source` names; without a recipe the one that `of_run` was begun with.

    Raises `UserError` for what cannot be meant, and where no run was begun at `of_run`.
    """
    recipe = source.recipe
    if not recipe:
        load_run(of_run)  # which says so where none was begun
        recipe = join_uri(of_run, RunLayout.CONFIG)
    text, name = load_recipe(recipe)
    config = load_config(text, source=name, overrides=source.overrides())
    return config if str(config.slides) else _with_indexed_slides(config)


def config_of_pipeline(pipeline: str, arguments: Mapping[str, Any], source: ConfigSource) -> RunConfig:
    """What a pipeline of eosin's will resolve, so that the impossible is refused before anything starts."""
    run = str(arguments["run"])
    if pipeline == "retrain":
        return retrain_config(run, str(arguments["registry"]), str(arguments["name"]), source)[0]
    config = resolve_config(source, of_run=run)
    if pipeline == "scaling_study":
        from eosin.study import study_of

        study_of(run, config, arguments.get("vary", "slides"), arguments.get("values", ()))
    return config


def _with_indexed_slides(config: RunConfig) -> RunConfig:
    """Where only an index is named, its newest snapshot says where the slides lie."""
    if not config.index.uri:
        raise UserError("no slides named", hint="give their folder: --slides s3://bucket/prefix")
    from eosin.index.snapshot import open_snapshot
    from eosin.index.sources import sources_of

    manifest = open_snapshot(config.index.uri).manifest
    found = {"sources": sources_of(manifest.sources)} if manifest.sources else {"uri": manifest.slides_uri}
    slides = config.slides.model_copy(update=found)
    return config.model_copy(update={"slides": slides})


def index_shards(run_uri: str, num_shards: int) -> list[dict[str, Any]]:
    """Open the scan of the run, unless it has its snapshot, and say what each task of it is told."""
    _scan_id(run_uri, anew=True)
    return shards(run_uri, num_shards)


def _scan_id(run_uri: str, *, anew: bool = False) -> str:
    """The run's scan; empty where the run has its snapshot."""
    from eosin.index.plan import scan_of_run

    store = open_store(run_uri)
    if store.exists(RunLayout.INDEX_PIN):
        return ""
    return scan_of_run(store, load_run(run_uri, store=store), anew=anew)


def shards(run_uri: str, num_shards: int) -> list[dict[str, Any]]:
    """What each of `num_shards` tasks of a loop is told. Raises `UserError` for none."""
    if num_shards < 1:
        raise UserError(f"{num_shards} shards do no work", hint="give at least one: num_…_shards=1")
    return [{"run_uri": run_uri, "num_shards": num_shards, "shard": shard} for shard in range(num_shards)]


def index_shard(run_uri: str, shard: int, num_shards: int) -> dict[str, Any]:
    """Scan this shard's slides and publish their rows."""
    config = load_run(run_uri)
    with RunLog(f"index-{shard:05d}", open_store(run_uri)) as log:
        if open_store(run_uri).exists(RunLayout.INDEX_PIN):
            log.event("index-pinned", detail="the run has its snapshot; nothing to scan")
            return {}
        from eosin.index.plan import plan_scan
        from eosin.index.scan import scan_shard

        plan = plan_scan(config, _scan_id(run_uri))
        return asdict(scan_shard(config, shard, num_shards, log, plan=plan))


def snapshot(run_uri: str, num_shards: int, *, allow_fewer: bool = False) -> SnapshotManifest:
    """Merge the shards into one snapshot and pin it to the run."""
    from eosin.index.plan import plan_scan
    from eosin.index.publish import publish_snapshot
    from eosin.index.snapshot import open_snapshot

    config = load_run(run_uri)
    if allow_fewer:
        index = config.index.model_copy(update={"allow_fewer_slides": True})
        config = config.model_copy(update={"index": index})
    with RunLog("index", open_store(run_uri)) as log:
        if open_store(run_uri).exists(RunLayout.INDEX_PIN):
            pin = load_pin(run_uri)
            return open_snapshot(pin.index_uri, pin.snapshot_id).manifest
        plan = plan_scan(config, _scan_id(run_uri))
        manifest = publish_snapshot(config, num_shards, log, plan=plan)
        pin_index(run_uri, IndexPin(index_uri=config.index.uri, snapshot_id=manifest.snapshot_id))
        return manifest


def index(
    run_uri: str | None, source: ConfigSource, shard: tuple[int, int] | None, merge: int | None, *,
    scan_id: str = "", contours: str = "", allow_fewer: bool = False,
) -> tuple[str, Any]:  # fmt: skip
    """`index_run`, or, where no run is named, `index_slides` of `source` with `contours`.

    Returns the index's URI (empty for a run) and what was found. Raises `UserError` for what contradicts.
    """
    if shard is not None and merge is not None:
        raise UserError("--shard and --merge are two steps", hint="scan the shards, then merge them")
    if run_uri is None:
        extra = ["index.allow_fewer_slides=true"] if allow_fewer else []
        extra += [f"slides.contours={json.dumps(contours)}"] if contours else []
        recipe, settings = source.recipe or "demo", (*source.settings, *extra)
        config = resolve_config(replace(source, recipe=recipe, settings=settings))
        return config.index.uri, index_slides(config, shard, merge, scan_id)
    given = {"--slides": source.slides, "--index": source.index, "--recipe": source.recipe,
             "--set": source.settings, "--scan": scan_id, "--contours": contours}  # fmt: skip
    if ignored := [name for name, value in given.items() if value]:
        raise UserError(
            f"{', '.join(ignored)} and --run contradict: a run's configuration says what is indexed",
            hint=f"plan the run with them: eosin run --local --run {quote(run_uri)} …",
        )
    return "", index_run(run_uri, shard, merge, allow_fewer=allow_fewer)


def index_run(
    run_uri: str, shard: tuple[int, int] | None, merge: int | None, *, allow_fewer: bool = False
) -> Any:
    """Index for a run: one shard, only the merge of `merge` shards, or all of it.

    `allow_fewer`: as `index.allow_fewer_slides`, whatever the run's configuration says.
    """
    num_shards = load_run(run_uri).index.num_shards
    if merge is not None:
        return snapshot(run_uri, merge, allow_fewer=allow_fewer)
    if shard is not None:
        return index_shard(run_uri, *shard)
    index_shards(run_uri, num_shards)
    for number in range(num_shards):
        index_shard(run_uri, number, num_shards)
    return snapshot(run_uri, num_shards, allow_fewer=allow_fewer)


def index_slides(
    config: RunConfig, shard: tuple[int, int] | None, merge: int | None, scan_id: str = ""
) -> Any:
    """As `index_run`, without a run: the snapshot is published and nothing pinned to it.

    `scan_id`: the scan to go on with; empty: the slides are listed, which opens a scan.
    """
    from eosin.index.plan import open_scan, plan_scan
    from eosin.index.publish import publish_snapshot, verified_early
    from eosin.index.scan import scan_shard

    if not config.index.uri:
        raise UserError("no place for the index named", hint="give it: --index s3://bucket/indexes/NAME")
    log = RunLog("index")
    if merge is not None:
        return publish_snapshot(config, merge, log, plan=plan_scan(config, scan_id))
    plan = plan_scan(config, scan_id) if scan_id else open_scan(config)
    if shard is not None:
        return scan_shard(config, *shard, log, plan=plan)
    with verified_early(plan, config.patches.stage_dir) as watch:
        scan_shard(config, 0, 1, log, plan=plan, watch=watch)  # one process needs no shards
    return publish_snapshot(config, 1, log, plan=plan)


def decode(
    run_uri: str,
    shard: int,
    num_shards: int,
    name: str = "",
    settings: Iterable[str] = (),
    slides: Iterable[str] = (),
) -> PatchSetManifest | None:
    """Decode one part of a patch set; whoever finishes last publishes the manifest (else None).

    Without a name: of the held-out set, and of each set of the run that one of its tasks names.
    """
    from eosin.patches.sets.decode import decode_set, sets_of_tasks
    from eosin.patches.sets.set_spec import open_decoding

    if not name:
        parts = [decode(run_uri, shard, num_shards, each) for each in sets_of_tasks(load_run(run_uri))]
        return parts[0]
    source = f"decode-{shard:05d}" if name == HELD_OUT else f"decode-{name}-{shard:05d}"
    with RunLog(source, open_store(run_uri)) as log:
        return decode_set(
            open_decoding(run_uri, name, shard, num_shards, tuple(settings), tuple(slides)), log
        )


def decode_run(
    run_uri: str, part: tuple[int, int] | None, name: str, settings: Iterable[str], slides: Iterable[str]
) -> PatchSetManifest | None:
    """As `decode`, of one part (number, of how many), or of them all one after another."""
    if part is not None:
        return decode(run_uri, *part, name, settings, slides)
    num_shards = load_run(run_uri).patches.heldout.num_shards if name == HELD_OUT else 1
    return [decode(run_uri, shard, num_shards, name, settings, slides) for shard in range(num_shards)][-1]


def decode_index(
    index_uri: str,
    out_uri: str,
    shard: int,
    num_shards: int,
    name: str,
    settings: Iterable[str] = (),
    slides: Iterable[str] = (),
) -> PatchSetManifest | None:
    """As `decode`, from an index alone: the set lies in `out_uri`."""
    from eosin.patches.sets.decode import decode_set
    from eosin.patches.sets.set_spec import open_decoding_of_index

    with RunLog(f"decode-{name}-{shard:05d}") as log:
        job = open_decoding_of_index(
            index_uri, out_uri, name, shard, num_shards, tuple(settings), tuple(slides)
        )
        return decode_set(job, log)


def plan_tiles(
    run_uri: str, num_shards: int, index_uri: str = "", patches_uri: str = ""
) -> list[dict[str, Any]]:
    """What each of `num_shards` tasks without a run is told. Raises `UserError` for nothing to read."""
    from eosin.index.snapshot import open_snapshot

    if bool(index_uri) == bool(patches_uri):
        raise UserError("patches come from an index or from a patch set", hint="give index or patches")
    if index_uri:
        open_snapshot(index_uri)
    elif load_record(PatchSetManifest, open_store(patches_uri), "manifest.json") is None:
        raise UserError(f"no patch set at {patches_uri}", hint="name its folder: OUT/patches/NAME")
    return shards(run_uri, num_shards)


def decode_tiles(
    run_uri: str, shard: int, num_shards: int, index_uri: str, name: str, settings: Iterable[str],
    slides: Iterable[str],
) -> dict[str, int]:  # fmt: skip
    """As `decode_index`, into the folder `run_uri`; figures of the set, from the task that publishes it."""
    found = decode_index(index_uri, run_uri, shard, num_shards, name, settings, slides)
    return {} if found is None else {
        "patches": found.num_patches, "slides": len(found.slides), "slides left out": len(found.left_out)
    }  # fmt: skip


def embed_tiles(
    run_uri: str, shard: int, num_shards: int, model: str, index_uri: str, patches_uri: str,
    settings: Iterable[str], slides: Iterable[str], format: str, read_out: str,
) -> dict[str, int]:  # fmt: skip
    """As `embed`, into the folder `run_uri`; figures, from the task that publishes the manifest."""
    from eosin.evaluation.embed_index import EmbedRequest

    request = EmbedRequest(
        model, run_uri, index_uri, patches_uri, tuple(slides) or ("*",), format, read_out=read_out,
        settings=tuple(settings),
    )  # fmt: skip
    found = embed(request, shard, num_shards)
    return {} if found is None else {"slides": found.num_slides, "slides left out": len(found.left_out)}


def embed(request: "EmbedRequest", shard: int, num_shards: int) -> "FeaturesManifest | None":
    """Embed one part of an index's slides; whoever finishes last publishes the manifest (else None)."""
    from eosin.evaluation.embed_index import embed_index

    with RunLog(f"embed-{shard:05d}") as log:
        return embed_index(request, shard, num_shards, log)


def curate(request: "CurateRequest") -> "ClustersManifest":
    """Cluster the patches of published features, for `patches.curation`."""
    from eosin.evaluation.curate import curate as curate_features

    require_libraries(EVALUATE_LIBRARIES)
    return curate_features(request, RunLog("curate"))


def train(run_uri: str, backend: str = "local", changes: Sequence[str] = ()) -> TrainingDone:
    """Train to the end: by torchrun on this machine, or as a JobSet on the cluster.

    `changes`: of the course of a run that has trained, as `eosin.runs.change_course` takes them.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}", hint=f"one of {', '.join(BACKENDS)}")
    before = load_run(run_uri)  # before torch is loaded for a run that is not there
    if backend == "local":
        require_libraries(TRAIN_LIBRARIES)
    with RunLog("launch", open_store(run_uri)) as log:
        if changes:
            course = change_course(run_uri, changes)
            told = difference(before.train.model_dump(mode="json"), course.train.model_dump(mode="json"))
            log.event("course-changed", changes=told or "as it is already")
        if backend == "jobset":
            from eosin.cluster.launcher import train_on_cluster

            if find_spec("torch") is not None:
                check_trainable(load_run(run_uri), here=False)
            return train_on_cluster(run_uri, log=log)
        from eosin.training.train import train as train_here

        return train_here(run_uri, log=log)


def evaluations(run_uri: str, teacher: str = "") -> list[dict[str, str]]:
    """Every (model, task) pair that the run's configuration wants judged.

    With `teacher`, the URI of an export or of another run, that teacher takes the place of the run's own.
    """
    from eosin.evaluation.plan import list_evaluations, list_evaluations_of

    load_run(run_uri)
    require_libraries(EVALUATE_LIBRARIES)
    return list_evaluations_of(run_uri, teacher) if teacher else list_evaluations(run_uri)


def evaluate_chosen(run_uri: str, model: str, task: str, part: tuple[int, int]) -> list[MetricRecord]:
    """As `evaluate`, of one model (any teacher, baseline or URI) or task of a run; empty: of all.

    `part`: which, of how many. Raises `UserError` where the run has no such model or task.
    """
    config = load_run(run_uri)
    tasks = [each.name for each in config.evaluate.tasks]
    if task and task not in tasks:
        raise UserError(f"run {run_uri} has no task {task!r}", hint=nearest_of(task, tasks))
    if model:
        require_libraries(EVALUATE_LIBRARIES)
        exported = exported_models(open_store(run_uri))
        known = dict.fromkeys([RANDOM_INIT, *config.evaluate.baselines, *exported])
        if model not in known and "/" not in model and not model.startswith("timm:"):
            raise UserError(f"run {run_uri} has no model {model!r}", hint=nearest_of(model, known))
    pairs = [{"model": model, "task": each} for each in tasks] if model else evaluations(run_uri)
    return evaluate([{"run": run_uri, **pair} for pair in pairs if task in ("", pair["task"])], *part)


def evaluation_shards(run_uri: str, num_shards: int, teacher: str = "") -> list[dict[str, Any]]:
    """What each of `num_shards` tasks of a loop is told, though there be nothing to judge.

    `teacher` as `evaluations` takes it. Raises `UserError` where there is no such teacher.
    """
    if teacher:
        from eosin.evaluation.plan import find_teacher

        find_teacher(teacher)
    return [{**each, "teacher": teacher} for each in shards(run_uri, num_shards)]


def evaluate_shard(run_uri: str, shard: int, num_shards: int, teacher: str = "") -> list[MetricRecord]:
    """Judge this shard's share of the models on their tasks, of a run or of all runs of a study."""
    is_study = open_store(run_uri).exists(RunLayout.STUDY)
    runs = [variant.run for variant in load_study(run_uri).variants] if is_study else [run_uri]
    pairs = [{"run": run, **pair} for run in runs for pair in evaluations(run, teacher)]
    return evaluate(pairs, shard, num_shards)


def evaluate(pairs: Iterable[dict[str, str]], shard: int = 0, num_shards: int = 1) -> list[MetricRecord]:
    """Judge a share of `pairs` {"run": …, "model": …, "task": …}, publishing each record as it is made."""
    from eosin.evaluation.plan import Evaluation, evaluate_all, share_of_evaluations

    def log_of(each: Evaluation) -> RunLog:
        return RunLog(f"evaluate-{record_key(each.model)}-{each.task}", open_store(each.run))

    share = share_of_evaluations([Evaluation(**pair) for pair in pairs], shard, num_shards)
    return list(evaluate_all(share, log_of))


def summarize(run_uri: str) -> "SummaryResult":
    """Write the report from what the run has published."""
    from eosin.summary.summarize import summarize as write_report

    with RunLog("summarize", open_store(run_uri)) as log:
        result = write_report(run_uri, log=log)
        send_results(open_store(run_uri), load_run(run_uri), result.headline, log)
        return result


def copy_report(run_uri: str, path: str) -> str:
    """Copy the report's page to a file; returns the page's URI."""
    Path(path).write_bytes(open_store(run_uri).get(RunLayout.SUMMARY_HTML))
    return join_uri(run_uri, RunLayout.SUMMARY_HTML)


def judge_new_slides(run_uri: str, min_new_slides: int) -> "Gate":
    """Whether a planned and indexed retraining has new slides enough to go on."""
    from eosin.registry.retrain import judge_new_slides as judge

    with RunLog("retrain", open_store(run_uri)) as log:
        return judge(run_uri, min_new_slides, log=log)


def promote(
    registry_uri: str,
    name: str,
    run_uri: str,
    *,
    model: str = "",
    metrics: Iterable[str] = (),
    margin: float = 0.0,
    alpha: float = 0.05,
) -> "Promotion":
    """Make a run's teacher the current model of the registry, if it beats the one that is."""
    from eosin.registry.promote import Rule
    from eosin.registry.promote import promote as promote_teacher

    rule = Rule(metrics=tuple(metrics), margin=margin, alpha=alpha)
    with RunLog("promote", open_store(run_uri)) as log:
        return promote_teacher(registry_uri, name, run_uri, model=model, rule=rule, log=log)


def finish(run_uri: str) -> list[str]:
    """End what the run has left on the cluster; returns the names of training that goes on without it.

    On this machine a run leaves nothing. Steps whose pods were ended from outside get their error here.
    """
    if not in_pod():
        return []
    from eosin.cluster.api import connect
    from eosin.cluster.finish import finish_run
    from eosin.cluster.workflow import find_launcher

    cluster = connect()
    try:
        launcher = find_launcher(cluster)
    except UserError:  # an account that cannot see its Workflow has submitted no training either
        return []
    if launcher.owner is None:
        return []
    run_uri = dated(run_uri)
    with RunLog("finish", open_store(run_uri)) as log:
        left = finish_run(cluster, launcher, log=log)
    for failure in left.silent:
        publish_silent_failure(run_uri, failure)
    return list(left.training)
