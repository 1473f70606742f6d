"""Checks of a configuration before training starts, and the figures it is planned by."""

import os
from dataclasses import dataclass
from typing import Any

from torch import nn

from eosin.config import RunConfig
from eosin.config.augment import AugmentConfig
from eosin.errors import UserError
from eosin.models.arch import require_multiple
from eosin.models.backbone import Backbone
from eosin.models.flops import crop_flops, flops_per_patch
from eosin.models.frozen_teacher import FrozenTeacher, frozen_teacher, teacher_shape
from eosin.models.network import Network, build_network
from eosin.training.engine.microbatch import compared_counts
from eosin.training.losses.cross_entropy import CHUNK_ELEMENTS


def check_training(
    config: RunConfig, *, memory_bytes: int | None = None, num_ranks: int | None = None
) -> dict[str, Any]:
    """Planned figures of a training: parameters, memory of a rank, FLOPs of an image and of the run.

    `memory_bytes`: of the device a rank runs on, where it is known; `num_ranks`: of the smallest world
    (None: as `train.elastic` says). Builds the network without memory, touches nothing else. Raises
    `UserError`, with the arithmetic, for what cannot work.
    """
    num_ranks = num_ranks or smallest_world(config)
    network = build_network(config, meta=True)
    backbone, augment = network.backbone, config.augment
    for sized in (augment, *(sized for _, sized in augment.variants())):
        _check_sides(config, sized, backbone.patch_size)
    frozen = _frozen(config, backbone)
    _check_microbatches(config)
    _check_schedules(config)
    memory = device_memory(config, network, num_ranks, frozen)
    if memory_bytes is not None and memory.certain_bytes > memory_bytes:
        raise _too_large(config, network, memory, memory_bytes, frozen)
    gflop = flops_per_image(config, network) / 1e9
    return {
        "parameters": _num_parameters(network),
        "backbone_parameters": _num_parameters(backbone),
        "head_parameters": _num_parameters(network) - _num_parameters(backbone),
        **({"distill_parameters": _num_parameters(frozen)} if frozen else {}),
        "state_gib": round(memory.certain_bytes / 2**30, 3),
        "activations_gib": round(memory.activation_bytes / 2**30, 3),
        "gflop_per_image": round(gflop, 3),
        "gflop_per_image_with_drop_path": round(
            flops_per_image(config, network, with_drop_path=True) / 1e9, 3
        ),
        "exaflop": round(gflop * config.train.batch_size * config.train.num_steps / 1e9, 6),
        "num_steps": config.train.num_steps,
        "patches": config.train.num_steps * config.train.batch_size,
        "microbatch_size": config.train.microbatch_size,
    }


def warm_start_advice(config: RunConfig) -> str:
    """What to say where trained weights are begun with at a rate for random ones; empty where they are not.

    For a batch of 1024 DINO's rate for random weights is 2e-3 and DINOv2's short recipe has 4e-3; those that
    continue trained weights on pathology have 2e-4 to 3.5e-4 (versions of Midnight's reproduction) and 2.8e-4
    (nanopath).
    """
    lr = config.train.optimizer.lr
    if config.model.init == "random" or lr <= _WARM_LR:
        return ""
    return (
        f"train.optimizer.lr {lr:g} is a rate for random weights, and model.init={config.model.init} begins"
        " with trained ones, which lose at it what they bring: 2e-4 to 5e-4 continue them (layer_decay 0.7"
        " with dinov2), or set model.init=random"
    )


def smallest_world(config: RunConfig) -> int:
    """Ranks without which training does not start on this machine."""
    return config.train.elastic.min_nodes * config.train.elastic.workers_per_node


def flops_per_image(config: RunConfig, network: Network, *, with_drop_path: bool = False) -> float:
    """Floating-point operations one patch costs, as `eosin.models.flops` counts them, on average.

    `with_drop_path`: less what a drop path above 0.1 saves.
    """
    train, total = config.train, 0.0
    dropped = config.model.drop_path if with_drop_path and not config.model.drop_path_rises else 0.0
    frozen = _frozen(config, network.backbone)
    seen = crop_flops(frozen, frozen.side_px) if frozen else None
    for share, augment in config.augment.variants():
        num_patches = (augment.global_px // network.backbone.patch_size) ** 2
        masked = sum(compared_counts(train, 2 * train.microbatch_size, num_patches)) * train.uses_ibot
        compared = masked / train.microbatch_size
        total += share * flops_per_patch(network, augment, compared, drop_path=dropped, frozen=seen)
    return total


def _frozen(config: RunConfig, backbone: Backbone) -> FrozenTeacher | None:
    """The teacher to distil, without memory."""
    distill = config.train.distill
    if distill is None:
        return None
    return frozen_teacher(distill, config.augment, teacher_shape(distill.teacher), backbone.patch_size)


def _num_parameters(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def local_memory_bytes(config: RunConfig) -> int:
    """Memory of this machine's first GPU, or a worker's part of the machine's own where it has none."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // smallest_world(config)


def _check_sides(config: RunConfig, augment: AugmentConfig, patch_size: int) -> None:
    """Crops are whole numbers of patches, and enough of these are hidden; `augment`: of some steps."""
    require_multiple(augment.global_px, patch_size, "augment.global_px")
    if augment.num_local:
        require_multiple(augment.local_px, patch_size, "augment.local_px")
    gram = config.train.gram
    name = f"augment.global_px × train.gram.px_multiplier {gram.px_multiplier:g} ="
    require_multiple(gram.crop_px(augment.global_px), patch_size, name)
    _check_masks(config, (augment.global_px // patch_size) ** 2)


def _check_microbatches(config: RunConfig) -> None:
    train = config.train
    workers = train.elastic.max_nodes * train.elastic.workers_per_node
    if workers > train.num_microbatches:
        raise UserError(
            f"{workers} workers ({train.elastic.max_nodes} nodes × {train.elastic.workers_per_node}) for"
            f" {train.num_microbatches} microbatches: {workers - train.num_microbatches} would have"
            " nothing to do",
            hint=f"raise train.num_microbatches to a multiple of {workers}, or take fewer workers",
        )
    alone = [name for name, size in train.uniformity_sets().items() if size < 2]
    if alone:
        raise UserError(
            f"train.{alone[0]} compares the patches of a microbatch, and there is 1: batch_size"
            f" {train.batch_size} ÷ num_microbatches {train.num_microbatches} = {train.microbatch_size}",
            hint=f"lower train.num_microbatches, or set train.{alone[0]}.set_size",
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
    for name in ("gram", "paka"):
        term = getattr(config.train, name)
        if term.weight > 0 and term.start_step >= num_steps:
            raise UserError(
                f"train.{name}.start_step {term.start_step} is not below train.num_steps {num_steps}",
                hint=f"it would never be taken: set train.{name}.weight=0, or begin it earlier",
            )
    gram = config.train.gram
    if gram.weight > 0 and gram.start_step + gram.warmup_steps > num_steps:
        raise UserError(
            f"train.gram.start_step {gram.start_step} + warmup_steps {gram.warmup_steps} are more than"
            f" train.num_steps {num_steps}",
            hint="its weight would never be reached: lower train.gram.warmup_steps",
        )


def _check_masks(config: RunConfig, num_patches: int) -> None:
    train = config.train
    if not (train.uses_ibot or train.uses_jepa):
        return
    loss, masking = "jepa" if train.uses_jepa else "ibot", train.masking
    if not sum(compared_counts(train, 2 * train.microbatch_size, num_patches)):
        raise UserError(
            f"train.{loss} masks nothing: {2 * train.microbatch_size} crops a microbatch × probability"
            f" {masking.mask_probability}, ratio up to {masking.mask_ratio[1]} of {num_patches} patches",
            hint=f"raise mask_probability or mask_ratio, or set train.{loss}.weight=0",
        )


def _too_large(
    config: RunConfig,
    network: Network,
    memory: "DeviceMemory",
    memory_bytes: int,
    frozen: FrozenTeacher | None,
) -> UserError:
    """The arithmetic, and what would do."""
    message = f"{memory.arithmetic()} a rank, and there are {memory_bytes / 2**30:.1f} GiB"
    sharded = config.model_copy(update={"train": config.train.model_copy(update={"parallel": "fsdp"})})
    for num_ranks in (2**n for n in range(1, 11)):
        enough = device_memory(sharded, network, num_ranks, frozen)
        if num_ranks <= config.train.num_microbatches and enough.certain_bytes < memory_bytes:
            return UserError(
                message,
                hint=f"train.parallel=fsdp over {num_ranks} ranks or more needs"
                f" {enough.certain_bytes / 2**30:.1f} GiB a rank and activations; or fewer prototypes, or a"
                " smaller model",
            )
    return UserError(message, hint="fewer prototypes, or a smaller model")


_WARM_LR = 1e-3
_FLOAT32 = 4
_COPIES = 5
_GIB = 2**30


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one rank of the smallest world that may train."""

    parallel: str
    num_ranks: int
    parameters: int
    frozen_parameters: int
    """Of the teacher to distil and of the Gram teacher."""
    state_bytes: int
    """Copies of the parameters, or this rank's shards of them."""
    gathered_bytes: int
    """Parameters and gradients of other ranks' shards that are here for a moment."""
    kept_bytes: int
    """Microbatch gradients of deterministic mode."""
    activation_bytes: int
    """Of one microbatch: an estimate; all else is exact but for what the allocator rounds up."""

    @property
    def certain_bytes(self) -> int:
        """What cannot be done without."""
        return self.state_bytes + self.gathered_bytes + self.kept_bytes

    def arithmetic(self) -> str:
        """The sum, in words."""
        copies = "5 float32 copies (student, gradient, two moments, teacher)"
        text = f"{self.parameters / 1e6:.1f} M parameters × {copies}"
        if self.frozen_parameters:
            text += f" + {self.frozen_parameters / 1e6:.1f} M of frozen teachers"
        if self.parallel == "fsdp":
            text += f" ÷ {self.num_ranks} ranks + {self.gathered_bytes / _GIB:.1f} GiB gathered"
        if self.kept_bytes:
            text += f" + {self.kept_bytes / _GIB:.1f} GiB of microbatch gradients"
        return f"{text} = {self.certain_bytes / _GIB:.1f} GiB"


def device_memory(
    config: RunConfig, network: Network, num_ranks: int, frozen: FrozenTeacher | None = None
) -> DeviceMemory:
    """What a rank of a world of `num_ranks` needs. `network` may be on the meta device.

    With P parameters (backbone and heads) on W ranks, in bytes:

        copies     4 · 5 · P          student, gradient, two moments of AdamW, teacher, all float32
        ddp        copies             on every rank
        fsdp       copies ÷ W + 16 · U + 12 · H

    U is the largest block: two are gathered at once, beside the gradient of one and its float32 copy on the
    way to the others. H is what is gathered throughout a pass: embeddings and heads in float32, their
    gradient and its copy. Deterministic mode keeps one more gradient a microbatch (ddp) or a second shard of
    the gradient (fsdp). A frozen teacher and the Gram teacher count once among the copies.
    """
    parameters, frozen_parameters = _num_parameters(network), _num_parameters(frozen)
    if config.train.gram.weight > 0:
        frozen_parameters += _num_parameters(network.backbone)
    sharded = config.train.parallel == "fsdp" and num_ranks > 1
    copies = _FLOAT32 * (_COPIES * parameters + frozen_parameters)
    microbatches_each = -(-config.train.num_microbatches // num_ranks)
    return DeviceMemory(
        config.train.parallel if sharded else "ddp",
        num_ranks,
        parameters,
        frozen_parameters,
        -(-copies // num_ranks) if sharded else copies,
        _gathered_bytes(network) if sharded else 0,
        _kept_bytes(config, parameters, num_ranks if sharded else 1, microbatches_each),
        _activation_bytes(config, network),
    )


def _gathered_bytes(network: Network) -> int:
    blocks: list[int] = [_num_parameters(block) for block in network.backbone.vit.blocks]
    rest = _num_parameters(network) - sum(blocks)
    return 4 * _FLOAT32 * max(blocks) + 3 * _FLOAT32 * rest


def _kept_bytes(config: RunConfig, parameters: int, num_shards: int, microbatches_each: int) -> int:
    if not config.train.deterministic:
        return 0
    return _FLOAT32 * parameters * (microbatches_each if num_shards == 1 else 1) // num_shards


def _activation_bytes(config: RunConfig, network: Network) -> int:
    """34 values of the stream a token and block (a rule for ViTs with fused attention; one, and one block's
    34, where activations are computed again), and at most four chunks of logits."""
    backbone, augment, size = network.backbone, config.augment, config.train.microbatch_size
    tokens = size * (
        2 * ((augment.global_px // backbone.patch_size) ** 2 + backbone.num_prefix_tokens)
        + augment.num_local * ((augment.local_px // backbone.patch_size) ** 2 + backbone.num_prefix_tokens)
    )
    values = backbone.depth + 34 if config.train.activation_checkpointing else 34 * backbone.depth
    logits = (2 + augment.num_local) * size * config.model.dino_head.num_prototypes
    stream = tokens * values * backbone.num_features * _width(config) // 2
    return stream + 4 * _FLOAT32 * min(logits, CHUNK_ELEMENTS)


def _width(config: RunConfig) -> int:
    """Bytes of a value while it is worked with."""
    return 2 if config.train.precision == "bf16" else _FLOAT32
