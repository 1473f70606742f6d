"""Model FLOP utilisation: the operations of a patch, and the matrix rate of a device."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from eosin.config.augment import AugmentConfig
from eosin.models.backbone import Backbone
from eosin.models.drop_path import is_subset, kept_samples
from eosin.models.frozen_teacher import FrozenTeacher
from eosin.models.network import Network, ProjectionHead

# Square products: large enough to reach the device's rate, milliseconds each.
_GPU_SIDE, _CPU_SIDE = 8192, 512
_GPU_ROUNDS, _CPU_ROUNDS = 10, 3
# A backward pass costs two forward passes: one matrix product for the inputs, one for the weights.
_FORWARD_AND_BACKWARD = 3


def flops_per_patch(
    network: Network,
    augment: AugmentConfig,
    compared_patches: float,
    *,
    drop_path: float = 0.0,
    frozen: "CropFlops | None" = None,
) -> float:
    """Operations of one patch in a training step: student forward and backward (3 ×), teacher forward (1 ×).

    `compared_patches`: of its two global crops together that go through the patch head, on average;
    `frozen`: of a global crop's way through the teacher's backbone, where it is not the student's.
    A multiply-add is two. Counted: patch embedding, linear layers, attention, heads and prototypes. Not
    counted: norms, activations, losses, optimizer, augmentation, and what recomputing activations adds.
    `drop_path`: counted as saved where branches run on a subset of the crops (above 0.1), else 0. It is
    the count of the plain model, whatever an implementation avoids.
    """
    num_global, kept = 2, _kept_share(drop_path)
    global_crop = crop_flops(network.backbone, augment.global_px)
    local_crop = crop_flops(network.backbone, augment.local_px)
    blocks = num_global * global_crop.blocks + augment.num_local * local_crop.blocks
    embedding = num_global * global_crop.embedding + augment.num_local * local_crop.embedding
    class_tokens, masked = head_flops(network.dino_head), head_flops(network.patch_head)
    student = embedding + kept * blocks + (num_global + augment.num_local) * class_tokens
    seen = frozen or global_crop
    teacher = num_global * (seen.embedding + seen.blocks + class_tokens)
    patches = compared_patches * masked
    return _FORWARD_AND_BACKWARD * (student + patches) + teacher + patches


@dataclass(frozen=True)
class CropFlops:
    """Operations of one crop's forward pass."""

    embedding: float
    blocks: float


def crop_flops(backbone: Backbone | FrozenTeacher, side_px: int) -> CropFlops:
    """Operations of one crop's forward pass: patch embedding, and all blocks.

    A block takes 2 a weight and token, and 4 · tokens² · dim for attention (scores, then their values).
    """
    patches = (side_px // backbone.patch_size) ** 2
    tokens = patches + backbone.num_prefix_tokens
    embedding = 2.0 * backbone.vit.patch_embed.proj.weight.numel() * patches
    width = sum(block.attn.num_heads * block.attn.head_dim for block in backbone.vit.blocks)
    attention = 4.0 * tokens * tokens * width
    return CropFlops(embedding, 2.0 * _matrix_elements(backbone.vit.blocks) * tokens + attention)


def head_flops(head: ProjectionHead) -> float:
    """Operations of one row's way through a head, prototypes included."""
    return 2.0 * _matrix_elements(head.mlp) + 2.0 * head.last_layer.weight_v.numel()


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of dense square products in `dtype` on `device`, the best of a few; takes about 0.1 s.

    A measured rate, not a data sheet's: an H200 reaches 790 of its 989 bf16 TFLOP/s. On a CPU, of as
    many threads as torch uses in this process.
    """
    is_gpu = device.type == "cuda"
    side = _GPU_SIDE if is_gpu else _CPU_SIDE
    # Random: a GPU multiplies ones or zeros faster than it ever will what is trained on.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    out = torch.empty_like(a)
    times = [_timed(a, b, out, device) for _ in range((_GPU_ROUNDS if is_gpu else _CPU_ROUNDS) + 1)]
    return 2.0 * side**3 / min(times[1:])


def _matrix_elements(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _kept_share(drop_path: float) -> float:
    """Share of the crops that run a branch, at the size of a large microbatch."""
    large = 1000
    return kept_samples(drop_path, large) / large if is_subset(drop_path) else 1.0


def _timed(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began_s = time.perf_counter()
    torch.mm(a, b, out=out)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s
