"""The reference's inputs and outputs, and its parameter names in ours."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eosin.config import RunConfig
from eosin.models.network import Network, build_network
from eosin.training.engine.microbatch import Microbatch

FOLDER = Path(__file__).parents[1] / "data" / "golden"
VALUES: dict[str, Any] = json.loads((FOLDER / "values.json").read_text())


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def step_config(name: str, num_microbatches: int = 1) -> RunConfig:
    """Our configuration of the reference's step `name`."""
    golden = VALUES["steps"][name]["config"]
    registers = (
        {"reg_tokens": golden["num_registers"], "no_embed_class": True} if golden["num_registers"] else {}
    )
    ibot_head = {"num_prototypes": 96, "hidden_dim": 64, "bottleneck_dim": 32}
    return RunConfig.model_validate(
        {
            "augment": {"global_px": golden["global_px"], "local_px": golden["local_px"], "num_local": 3},
            "model": {
                "arch": "vit_tiny_patch16_224",
                "arch_args": {
                    "patch_size": golden["patch_px"], "embed_dim": golden["embed_dim"],
                    "depth": golden["depth"], "num_heads": golden["num_heads"], **registers,
                },
                "layer_scale": golden["layer_scale"],
                "dino_head": {"num_prototypes": 128, "hidden_dim": 64, "bottleneck_dim": 32},
                "ibot_head": ibot_head if golden["separate_ibot_head"] else None,
            },
            "train": {
                "num_steps": 1,
                "batch_size": golden["images"],
                "num_microbatches": num_microbatches,
                "precision": "float32",
                "dino": {
                    "centering": "sinkhorn" if golden["centering"] == "sinkhorn_knopp" else "softmax",
                },
            },
        }
    )  # fmt: skip


def our_state(state: dict[str, Tensor], *, registers: bool) -> dict[str, Tensor]:
    """Reference names to ours. With registers, timm folds the class token's position into the token."""
    ours = {}
    for name, value in state.items():
        module, _, local = name.partition(".")
        if module != "backbone" or local == "mask_token":
            ours[name] = value
        else:
            ours[f"backbone.vit.{local.replace('register_tokens', 'reg_token')}"] = value
    if registers:
        position = ours["backbone.vit.pos_embed"]
        ours["backbone.vit.cls_token"] = ours["backbone.vit.cls_token"] + position[:, :1]
        ours["backbone.vit.pos_embed"] = position[:, 1:]
    return ours


def part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def network(config: RunConfig, golden: dict[str, Tensor], which: str) -> Network:
    """The reference's student or teacher in our modules."""
    built = build_network(config)
    registers = "reg_tokens" in config.model.arch_args
    built.load_state_dict(our_state(part(golden, f"{which}."), registers=registers))
    return built


def microbatches(golden: dict[str, Tensor], num_microbatches: int) -> dict[int, Microbatch]:
    """The reference's batch, cut into `num_microbatches` microbatches of consecutive images."""
    global_crops = golden["global_crops"].unflatten(0, (2, -1))
    local_crops = golden["local_crops"].unflatten(0, (3, -1))
    masks = golden["masks"].bool().unflatten(0, (2, -1))
    size = global_crops.shape[1] // num_microbatches
    cut = [slice(i * size, (i + 1) * size) for i in range(num_microbatches)]
    return {
        i: Microbatch(global_crops[:, rows], local_crops[:, rows], masks[:, rows].flatten(0, 1))
        for i, rows in enumerate(cut)
    }


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def flat_gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
