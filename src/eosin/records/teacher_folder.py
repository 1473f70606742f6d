"""The files beside a teacher's weights that plain timm and people read: config.json and README.md."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from eosin.records.metric import MetricRecord
from eosin.records.run import TeacherCard

# Arguments of timm's networks that are classes and have no short names.
_CLASSES = ("mlp_layer", "embed_layer")
_IDENTIFIER = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")


@dataclass(frozen=True)
class CardContext:
    """What a model card tells beside what the teacher's own card knows; empty: not known."""

    licence: str = ""
    """Identifier of the hub, such as cc-by-nc-4.0, or a name in words."""
    method: str = ""
    recipe: str = ""
    init: str = ""
    data: str = ""
    """How many slides, and how much tissue."""
    figures: tuple[MetricRecord, ...] = ()
    """Of this teacher, one a task."""
    untrained: tuple[MetricRecord, ...] = ()
    """Of the network before any step, on the same tasks."""


def timm_lines(folder: str, arch_args: Mapping[str, Any]) -> str:
    """Python lines that load the teacher of a local `folder` with timm alone: model and transform.

    Three, and more where `arch_args` name a class, which timm does not take by its name from config.json.
    """
    named = {key: arch_args[key] for key in _CLASSES if isinstance(arch_args.get(key), str)}
    imports = f"from timm.layers import {', '.join(sorted(set(named.values())))}\n" if named else ""
    classes = "".join(f", {key}={value}" for key, value in named.items())
    return (
        f"import timm\n{imports}"
        f'model = timm.create_model("local-dir:{folder}", pretrained=True{classes}).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
    )


def features_line() -> str:
    """The Python line that turns `image`, a PIL picture in RGB, into features [1, num_features]."""
    return "features = model(transform(image).unsqueeze(0))\n"


def timm_config(card: TeacherCard) -> bytes:
    """`config.json` in the form of timm's own exports: its `local-dir:` and `hf-hub:` both take the folder.

    The transform it describes is the one that evaluation uses: shorter side resized to `img_px` (bilinear),
    centre square, mean and std of training.
    """
    config: dict[str, Any] = {
        "architecture": card.arch,
        "num_classes": 0,
        "num_features": card.num_features,
        "global_pool": card.arch_args.get("global_pool", "token"),
        "model_args": card.arch_args,
        "pretrained_cfg": {
            "input_size": [3, card.img_px, card.img_px],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(card.mean),
            "std": list(card.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    return (json.dumps(config, indent=2) + "\n").encode()


def readme(card: TeacherCard, context: CardContext | None = None) -> bytes:
    """`README.md`: what the model is, the lines that load it, what it was trained on, how it was judged."""
    context = context or CardContext()
    mpp = ", ".join(f"{value:g}" for value in card.mpp)
    step = "" if card.step is None else f" at step {card.step:,}"
    facts = {
        "architecture": f"`{card.arch}` of timm, `{json.dumps(card.arch_args)}`",
        "features": f"{card.num_features} a picture: the class token after the last norm",
        "pictures": f"RGB, {card.img_px} × {card.img_px} px, mean {list(card.mean)}, std {list(card.std)}",
        "trained at": f"{mpp} µm a pixel",
        "trained on": context.data or "not recorded",
        "trained by": ", ".join(
            filter(None, (context.method, context.recipe and f"recipe {context.recipe}"))
        ),
        "trained from": context.init,
        "licence": context.licence or "not stated: ask whoever trained it, and mind that of its beginning",
        "weights": f"`model.safetensors`, SHA-256 `{card.weights_sha256}`",
        "snapshot of the index": f"`{card.snapshot_id}`" if card.snapshot_id else "not recorded",
        "configuration": f"`{card.config_digest}`" if card.config_digest else "not recorded",
        "eosin": card.eosin_version or "not recorded",
    }
    cells = {name: " ".join(text.split()).replace("|", "\\|") for name, text in facts.items() if text}
    rows = "".join(f"| {name} | {text} |\n" for name, text in cells.items())
    owners = "".join(f"- {' '.join(line.split())}\n" for line in card.attribution)
    attribution = f"\n## Attribution\n\nTrained on slides of:\n\n{owners}" if owners else ""
    return f"""---
{_front_matter(context.licence)}---

# {card.name}

The teacher of a self-supervised training on whole-slide images{step}, by eosin. Not a medical device.

## Use your model

Copy this folder to where you work; timm (1.0.20 or newer), torch and torchvision are enough:

```python
{timm_lines(card.name, card.arch_args)}```

For `image`, a PIL picture in RGB of about {mpp} µm a pixel:

```python
{features_line()}```

gives {card.num_features} numbers, as eosin's own evaluation takes them where `evaluate.img_px` is not set.

## What it is

| | |
|---|---|
{rows}{_figures(context)}{attribution}""".encode()


def _front_matter(licence: str) -> str:
    """What the hub reads: a licence it has an identifier for, or `other` under the name that was given."""
    told: dict[str, Any] = {"library_name": "timm", "tags": ["feature-extraction", "pathology"]}
    if _IDENTIFIER.fullmatch(licence):
        told["license"] = licence
    elif licence:
        slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
        told |= {"license": "other", "license_name": slug or "own"}
    text: str = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
    return text


def _figures(context: CardContext) -> str:
    """A row a task and metric, beside the network before any step."""
    before = {
        (record.task, name): value.mean
        for record in context.untrained
        for name, value in record.metrics.items()
    }
    lines = []
    for record in sorted(context.figures, key=lambda record: record.task):
        for name, value in sorted(record.metrics.items()):
            low_high = record.details.intervals.get(name)
            interval = "" if low_high is None else f"{low_high[0]:.3f} – {low_high[1]:.3f}"
            first = before.get((record.task, name))
            told = "" if first is None else f"{first:.3f}"
            lines.append(f"| {record.task} | {name} | {value.mean:.3f} | {interval} | {told} |\n")
    if not lines:
        return ""
    head = "| task | metric | figure | 95 % interval | untrained |\n|---|---|---|---|---|\n"
    return f"\n## How it was judged\n\n{head}{''.join(lines)}"
