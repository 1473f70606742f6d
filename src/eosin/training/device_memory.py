"""Device memory of a training, as arithmetic that can be checked by hand.

With P parameters (backbone and heads) on W ranks, in bytes:

    copies     4 · 5 · P          student, gradient, two moments of AdamW, teacher, all float32
    ddp        copies             on every rank
    fsdp       copies ÷ W + 16 · U + 12 · H

U is the largest block: two are gathered at once, beside the gradient of
one and its float32 copy on the way to the others. H is what is gathered throughout a pass: embeddings and
heads in float32, their gradient and its copy. Deterministic mode keeps one more gradient a microbatch (ddp)
or a second shard of the gradient (fsdp).
"""

from __future__ import annotations

from dataclasses import dataclass

from eosin.config import RunConfig
from eosin.models.network import Network
from eosin.training.losses.cross_entropy import CHUNK_ELEMENTS

_FLOAT32 = 4
_COPIES = 5
_GIB = 2**30


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one rank of the smallest world that may train."""

    parallel: str
    num_ranks: int
    parameters: int
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
        if self.parallel == "fsdp":
            text += f" ÷ {self.num_ranks} ranks + {self.gathered_bytes / _GIB:.1f} GiB gathered"
        if self.kept_bytes:
            text += f" + {self.kept_bytes / _GIB:.1f} GiB of microbatch gradients"
        return f"{text} = {self.certain_bytes / _GIB:.1f} GiB"


def device_memory(config: RunConfig, network: Network, num_ranks: int) -> DeviceMemory:
    """What a rank of a world of `num_ranks` needs. `network` may be on the meta device."""
    parameters = sum(p.numel() for p in network.parameters())
    sharded = config.train.parallel == "fsdp" and num_ranks > 1
    copies = _COPIES * _FLOAT32 * parameters
    microbatches_each = -(-config.train.num_microbatches // num_ranks)
    return DeviceMemory(
        config.train.parallel if sharded else "ddp",
        num_ranks,
        parameters,
        -(-copies // num_ranks) if sharded else copies,
        _gathered_bytes(network) if sharded else 0,
        _kept_bytes(config, parameters, num_ranks if sharded else 1, microbatches_each),
        _activation_bytes(config, network),
    )


def _gathered_bytes(network: Network) -> int:
    blocks: list[int] = [sum(p.numel() for p in b.parameters()) for b in network.backbone.vit.blocks]
    rest = sum(p.numel() for p in network.parameters()) - sum(blocks)
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
