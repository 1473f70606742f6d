"""Small runs, teachers and labelled images for the tests of evaluation."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eosin.config import RunConfig, dump_config
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import PatchSetManifest, PatchSetShard
from eosin.records.patchset_shard import PatchRow, encode_shard
from eosin.storage import open_store

TINY_MODEL = {
    "arch": "vit_tiny_patch16_224",
    "layer_scale": None,
    "arch_args": {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8},
    "dino_head": {"num_prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8},
}
COLORS = {"blue": (70, 80, 190), "green": (60, 170, 80), "red": (200, 60, 70)}


def make_config(tasks: Sequence[dict[str, Any]], **evaluate: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": TINY_MODEL,
            "augment": {"global_px": 32, "local_px": 16},
            "evaluate": {"tasks": list(tasks), **evaluate},
        }
    )


def make_run(folder: Path, config: RunConfig) -> str:
    """A run with its configuration published; returns its URI."""
    uri = f"file://{folder}/run"
    open_store(uri).put(RunLayout.CONFIG, dump_config(config).encode())
    return uri


def export(run_uri: str, config: RunConfig, step: int, *, seed: int = 1, spoil: float | None = None) -> str:
    """Export a teacher as training would; `spoil` is put in the place of one weight."""
    import torch

    from eosin.layout import model_name
    from eosin.models.export import export_teacher
    from eosin.models.network import build_network

    backbone = build_network(config.model_copy(update={"seed": seed})).backbone
    if spoil is not None:
        with torch.no_grad():
            backbone.vit.norm.weight[0] = spoil
    export_teacher(open_store(run_uri), model_name(step), backbone, config=config, step=step)
    return model_name(step)


def write_timm_network(folder: Path, arch: str = "test_vit") -> str:
    """Weights of a network of timm, drawn from seed 0, as `weights.safetensors`: the model's name."""
    import safetensors.torch
    import torch

    from eosin.models.arch import import_timm

    torch.manual_seed(0)
    network = import_timm().create_model(arch, pretrained=False, num_classes=0)
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    return f"timm:{arch}@{folder}/weights.safetensors"


def image(color: tuple[int, int, int], seed: int, *, side_px: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 30, (side_px, side_px, 3))
    return Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()


def write_folder(root: Path, counts: dict[str, dict[str, int]]) -> str:
    """`counts[split][class]` images under root/split/class; split "" puts classes at the root."""
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name if split else root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                seed += 1
                (folder / f"{i:03d}.png").write_bytes(encoded(image(COLORS[name], seed)))
    return f"file://{root}"


def patch_rows(num_patients: int = 6, per_class: int = 3, **fields: Any) -> list[PatchRow]:
    """Rows of every colour for each of the patients, at two magnifications."""
    rows = []
    for patient in range(num_patients):
        for number, (name, color) in enumerate(COLORS.items()):
            for i in range(per_class):
                seed = patient * 1000 + number * 100 + i
                values = {"label": name, "patient": f"p{patient}", "mpp": 0.5 if i % 2 else 1.0, **fields}
                rows.append(
                    PatchRow(
                        image=encoded(image(color, seed)),
                        slide=f"{patient}.svs",
                        x_px=i,
                        y_px=number,
                        foreground=1.0,
                        **values,
                    )
                )
    return rows


def write_patch_set(root: Path, rows: Sequence[PatchRow], *, num_shards: int = 2) -> str:
    store = open_store(f"file://{root}")
    shards = []
    for i in range(num_shards):
        part = rows[i::num_shards]
        data = encode_shard(part)
        key = f"{i:05d}-of-{num_shards:05d}.parquet"
        store.put(key, data)
        shards.append(PatchSetShard(key=key, num_patches=len(part), sha256=hashlib.sha256(data).hexdigest()))
    manifest = PatchSetManifest(
        name=root.name,
        digest=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        patch_px=32,
        mpp=(0.5, 1.0),
        encoding="png",
        num_patches=len(rows),
        shards=tuple(shards),
        slides=tuple(sorted({row.slide for row in rows})),
    )
    store.put("manifest.json", manifest.to_json())
    return f"file://{root}"


def quiet_log() -> RunLog:
    return RunLog("evaluate-test")
