"""Checks of a run before it starts: whatever would be refused later is refused while nothing is written."""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from eosin.cluster.commands import workers_per_node
from eosin.cluster.defaults import defaults_in_reach, with_defaults
from eosin.cluster.jobset import check_cluster_config
from eosin.config import RunConfig
from eosin.config.cluster import ClusterConfig, NodePoolConfig
from eosin.errors import EosinError, MissingDependency, UserError
from eosin.index.overrides import load_overrides
from eosin.index.sources import require_slides
from eosin.layout import RANDOM_INIT, TEACHER_CARD, IndexLayout
from eosin.runs import Planned, plan_config
from eosin.storage import NotFound, open_store
from eosin.storage.uri import parse_uri
from eosin.summary.earlier import MeasuredSpeed, measured_speeds

_LARGEST_GPU_GIB = 288.0
"""NVIDIA B300; what needs more has no place on any GPU of today."""
_TIMM, _HUB = "timm:", "timm:hf-hub:"
# Module that a verb needs, and the extra that installs it.
TRAIN_LIBRARIES = (("torch", "train"), ("timm", "train"), ("safetensors", "train"))
EVALUATE_LIBRARIES = (("torch", "evaluate"), ("timm", "evaluate"), ("safetensors", "evaluate"))
RUNNER_LIBRARIES = (("kfp", "kubeflow"),)


def check_plan(run_uri: str, config: RunConfig, *, known_slides: str = "") -> Planned:
    """What planning a run would do. Raises `UserError` for what it would refuse; publishes nothing.

    `known_slides`: the slides that an earlier run was trained on, which are not looked into again.
    """
    planned = plan_config(run_uri, config)
    for uri in (run_uri, planned.config.index.uri):
        require_place(uri)
    slides = planned.config.slides
    if (not planned.begun or planned.renewed) and str(slides) != known_slides:
        require_slides(slides)
        load_overrides(slides.overrides)
    return planned


def require_place(uri: str) -> None:
    """Raises `UserError` where nothing can be published at `uri`: no such bucket, no right, a file there."""
    with suppress(NotFound):
        open_store(uri).head(IndexLayout.LATEST)
    location = parse_uri(uri)
    if location.scheme != "file":
        return
    path = Path(location.path)
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"nothing can be published at {uri}: {there} is a file", hint="name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        message = f"nothing can be published at {uri}: {there} may not be written"
        raise UserError(message, hint="name another folder, or change its rights")


def require_libraries(libraries: Iterable[tuple[str, str]]) -> None:
    """Raises `MissingDependency` naming the extra of the first (module, extra) that is not installed."""
    for module, extra in libraries:
        if find_spec(module) is None:
            raise MissingDependency(module, extra)


def check_models(config: RunConfig) -> None:
    """Raises `UserError` where `model.init` or a baseline is certainly not there, or does not fit.

    Weights that only a download can bring are not asked for. Without torch in this image names of timm are
    taken as they are.
    """
    with_torch = find_spec("torch") is not None and find_spec("timm") is not None
    if with_torch:
        from eosin.models.init import check_init

        check_init(config)
    for name in config.evaluate.baselines:
        _check_baseline(name, with_torch=with_torch)


def check_teacher(uri: str) -> str:
    """URI of the teacher that `uri` names. Raises `UserError` where there is none."""
    from eosin.evaluation.plan import find_teacher

    return find_teacher(uri)


def check_trainable(config: RunConfig, *, here: bool) -> dict[str, Any]:
    """Figures of the training. Raises `UserError` for what cannot be trained; `ImportError` without torch.

    `here`: on this machine; else on the nodes of `cluster.pools`, whose memory is known where
    `gpu_memory_gib` says it, so that without it only what fits no GPU at all is refused for its memory.
    """
    from eosin.training.check import check_training, local_memory_bytes

    if here:
        return check_training(config, memory_bytes=local_memory_bytes(config))
    pools, on_cores = config.cluster.pools, config.train.elastic.workers_per_node
    num_ranks = sum(pool.min_nodes * (pool.gpus_per_node or on_cores) for pool in pools)
    known = [pool.gpu_memory_gib for pool in pools if pool.gpu_memory_gib is not None]
    memory_gib = min(known, default=_LARGEST_GPU_GIB)
    return check_training(config, memory_bytes=int(memory_gib * 2**30), num_ranks=max(num_ranks, 1))


def check_placement(run_uri: str, config: RunConfig, presets: ClusterConfig) -> RunConfig:
    """`config` with what the cluster presets. Raises `UserError` where a launcher would refuse to train it.

    Without torch in this image memory and batch are left to whoever has it.
    """
    config = config.model_copy(update={"cluster": with_defaults(config.cluster, presets)})
    check_cluster_config(config, run_uri, image=config.cluster.image or "that of the launcher")
    if find_spec("torch") is not None:
        check_trainable(config, here=False)
    return config


def check_pools_in_reach(run_uri: str, config: RunConfig, namespace: str = "") -> tuple[RunConfig, str]:
    """As `check_placement` with what the cluster of the kubeconfig presets; and why that is not known.

    Then pools that the run leaves open may be any, and only what is said of them here is checked.
    """
    presets, unseen = defaults_in_reach(namespace or config.cluster.namespace)
    if not unseen or config.cluster.pools != ClusterConfig().pools:
        return check_placement(run_uri, config, presets), unseen
    if find_spec("torch") is not None:
        check_trainable(config, here=False)
    return config, unseen


def compare_pools(config: RunConfig, run_uri: str) -> dict[str, str]:
    """A line a node pool, `pool NAME`: what a JobSet takes, its price, and how fast a node was in earlier
    runs of the recipe in the folder of `run_uri`; with several that tell both, `cheapest pool`."""
    speeds: dict[str, MeasuredSpeed] = {}
    with suppress(EosinError):  # what is beside a run may be nobody's to read
        speeds = measured_speeds(run_uri, config.recipe)
    lines, usd = {}, {}
    for pool in config.cluster.pools:
        told = f"images an hour: not measured in a run of {config.recipe or 'no recipe'} beside this one"
        if found := speeds.get(pool.name):
            per_node = found.images_per_worker_hour * workers_per_node(config, pool)
            told = f"{per_node:,.0f} images an hour and node"
            if pool.price_usd_per_hour is not None and per_node:
                usd[pool.name] = 1e6 * pool.price_usd_per_hour / per_node
                told += f", {usd[pool.name]:.2f} USD a million"
            told += f" (measured in {found.run}{'' if found.alone else ', all pools together'})"
        lines[f"pool {pool.name}"] = f"{_size(config, pool)}; {told}"
    if len(usd) > 1:
        cheapest = min(usd, key=usd.__getitem__)
        lines["cheapest pool"] = f"{cheapest}, {usd[cheapest]:.2f} USD a million images as measured"
    return lines


def _size(config: RunConfig, pool: NodePoolConfig) -> str:
    """Nodes, GPUs, workers and money an hour of a pool, at its smallest and at its largest."""

    def told(each: float, noun: str = "") -> str:
        low, high = (f"{nodes * each:g}" for nodes in (pool.min_nodes, pool.max_nodes))
        unit = f" {noun}" + ("" if high == "1" else "s") if noun else ""
        return (low if low == high else f"{low}–{high}") + unit

    kind, price = "spot" if pool.spot else "on demand", pool.price_usd_per_hour
    workers = workers_per_node(config, pool)
    size = f"{told(1, 'node')} ({kind}), {told(pool.gpus_per_node, 'GPU')}, {told(workers, 'worker')}"
    return size if price is None else f"{size}, {told(price)} USD an hour"


def check_trainable_apart(config: RunConfig) -> None:
    """As `check_trainable` on this machine, in a process that ends with it.

    A parent that waits for a pipeline needs no torch in its memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        apart.submit(check_trainable, config, here=True).result()


def _check_baseline(name: str, *, with_torch: bool) -> None:
    if name == RANDOM_INIT or name.startswith(_HUB):
        return
    if name.startswith(_TIMM):
        arch, _, uri = name.removeprefix(_TIMM).partition("@")
        if uri:
            _require_object(uri, f"baseline {name}: no weights at {uri}")
        elif with_torch:
            from eosin.models.weights import require_timm_weights

            require_timm_weights(arch)
        return
    if "/" not in name:
        raise UserError(
            f"evaluate.baselines: {name!r} is no baseline",
            hint="random-init, timm:NAME, timm:ARCH@URI, or the URI of a teacher's folder",
        )
    _require_object(f"{name.rstrip('/')}/{TEACHER_CARD}", f"baseline {name}: {TEACHER_CARD} is not there")


def _require_object(uri: str, message: str) -> None:
    folder, _, key = uri.rpartition("/")
    try:
        open_store(folder or ".").head(key)
    except NotFound:
        raise UserError(message, hint="check the URI, or leave it out of evaluate.baselines") from None
