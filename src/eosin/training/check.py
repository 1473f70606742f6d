"""Refuse what cannot be trained before anything is started, and say what the rest will take."""

from __future__ import annotations

import os
from typing import Any

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.models.arch import require_multiple
from eosin.models.flops import Views, flops_per_patch
from eosin.models.network import Network, build_network
from eosin.training.losses.cross_entropy import CHUNK_ELEMENTS
from eosin.training.masks import mask_counts

_FLOAT32 = 4


def check_training(config: RunConfig, *, memory_bytes: int | None = None) -> dict[str, Any]:
    """Planned figures of a training: parameters, memory of a rank, FLOPs of an image and of the run.

    `memory_bytes`: of the device a rank runs on, where it is known. Builds the network without memory,
    touches nothing else. Raises `UserError`, with the arithmetic, for what cannot work.
    """
    network = build_network(config, meta=True)
    backbone, augment = network.backbone, config.augment
    require_multiple(augment.global_px, backbone.patch_size, "augment.global_px")
    require_multiple(augment.local_px, backbone.patch_size, "augment.local_px")
    _check_slots(config)
    _check_schedules(config)
    _check_masks(config, (augment.global_px // backbone.patch_size) ** 2)
    memory = memory_estimate(config, network)
    if memory_bytes is not None and memory["state_bytes"] > memory_bytes:
        raise UserError(_too_large(memory, memory_bytes), hint="fewer prototypes, or a smaller model")
    gflop = flops_per_image(config, network) / 1e9
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "backbone_parameters": sum(p.numel() for p in backbone.parameters()),
        "head_parameters": sum(p.numel() for p in network.parameters())
        - sum(p.numel() for p in backbone.parameters()),
        "state_gib": round(memory["state_bytes"] / 2**30, 3),
        "activations_gib": round(memory["activation_bytes"] / 2**30, 3),
        "gflop_per_image": round(gflop, 3),
        "gflop_per_image_with_drop_path": round(
            flops_per_image(config, network, with_drop_path=True) / 1e9, 3
        ),
        "exaflop": round(gflop * config.train.batch_size * config.train.num_steps / 1e9, 6),
        "num_steps": config.train.num_steps,
        "patches": config.train.num_steps * config.train.batch_size,
        "slot_size": config.train.slot_size,
    }


def memory_estimate(config: RunConfig, network: Network) -> dict[str, int]:
    """Bytes a rank holds. State: student, gradient, two moments and teacher in float32, with 512 MiB of
    logits at most twice; activations: 34 values of the stream a token and block (a rule for ViTs with
    fused attention), for one micro-batch."""
    parameters = sum(p.numel() for p in network.parameters())
    width = 2 if config.train.precision == "bf16" else _FLOAT32
    tokens = sum(_tokens(config, network))
    activations = 34 * tokens * network.backbone.depth * network.backbone.num_features * width // 2
    prototypes = config.model.dino_head.num_prototypes
    logits = min((10 * config.train.slot_size) * prototypes, CHUNK_ELEMENTS) * _FLOAT32 * 4
    return {
        "state_bytes": 5 * _FLOAT32 * parameters,
        "activation_bytes": activations + logits,
        "parameters": parameters,
    }


def flops_per_image(config: RunConfig, network: Network, *, with_drop_path: bool = False) -> float:
    """Floating-point operations one patch costs, as `eosin.models.flops` counts them.

    `with_drop_path`: less what a drop path above 0.1 saves.
    """
    augment, train = config.augment, config.train
    num_patches = (augment.global_px // network.backbone.patch_size) ** 2
    masked = sum(mask_counts(train.ibot, 2 * train.slot_size, num_patches)) if train.uses_ibot else 0
    views = Views(augment.global_px, augment.local_px, augment.num_local, masked / train.slot_size)
    return flops_per_patch(network, views, drop_path=config.model.drop_path if with_drop_path else 0.0)


def local_memory_bytes() -> int:
    """Memory of this machine's first GPU, or of the machine itself where it has none."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _tokens(config: RunConfig, network: Network) -> tuple[int, int]:
    """Tokens of all global and of all local crops of a micro-batch."""
    backbone, augment, size = network.backbone, config.augment, config.train.slot_size

    def each(side_px: int) -> int:
        return (side_px // backbone.patch_size) ** 2 + backbone.num_prefix_tokens

    return 2 * size * each(augment.global_px), augment.num_local * size * each(augment.local_px)


def _check_slots(config: RunConfig) -> None:
    train = config.train
    workers = train.elastic.max_nodes * train.elastic.workers_per_node
    if workers > train.num_slots:
        raise UserError(
            f"{workers} workers ({train.elastic.max_nodes} nodes × {train.elastic.workers_per_node}) for"
            f" {train.num_slots} micro-batches: {workers - train.num_slots} would have nothing to do",
            hint=f"raise train.num_slots to a multiple of {workers}, or take fewer workers",
        )
    spread = [name for name in ("koleo", "kde") if getattr(train, f"{name}_weight") > 0]
    if spread and train.slot_size < 2:
        raise UserError(
            f"train.{spread[0]} compares the patches of a micro-batch, and there is 1: batch_size"
            f" {train.batch_size} ÷ num_slots {train.num_slots} = {train.slot_size}",
            hint="lower train.num_slots",
        )


def _check_schedules(config: RunConfig) -> None:
    optimizer, num_steps = config.train.optimizer, config.train.num_steps
    for name in ("warmup_steps", "freeze_last_layer_steps"):
        value = getattr(optimizer, name)
        if value >= num_steps:
            raise UserError(
                f"train.optimizer.{name} {value} is not below train.num_steps {num_steps}",
                hint="training would end before it begins to learn",
            )


def _check_masks(config: RunConfig, num_patches: int) -> None:
    train = config.train
    if not train.uses_ibot:
        return
    low, high = train.ibot.mask_ratio
    if not 0 <= low <= high <= 1:
        raise UserError(f"train.ibot.mask_ratio ({low}, {high}) must rise within 0 … 1")
    counts = mask_counts(train.ibot, 2 * train.slot_size, num_patches)
    if not sum(counts):
        raise UserError(
            f"train.ibot masks nothing: {2 * train.slot_size} crops a micro-batch × probability"
            f" {train.ibot.mask_probability}, ratio up to {high} of {num_patches} patches",
            hint="raise mask_probability or mask_ratio, or set train.ibot.weight=0",
        )


def _too_large(memory: dict[str, int], memory_bytes: int) -> str:
    return (
        f"{memory['parameters'] / 1e6:.1f} M parameters × 5 float32 copies (student, gradient, two moments,"
        f" teacher) = {memory['state_bytes'] / 2**30:.1f} GiB, and there are {memory_bytes / 2**30:.1f} GiB"
    )
