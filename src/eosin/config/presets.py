"""Public datasets and the protocol each is judged by, so that one line of configuration is enough.

The figures are kaiko-eva's (0.4.5): steps, batch, learning rate and seeds are the defaults of the tasks;
what differs between datasets stands here.
"""

from typing import Any, Literal

from eosin.words import nearest_of

ImageLayout = Literal["bach", "bracs", "breakhis", "crc", "gleason", "mhist", "pcam", "unitopatho"]
MaskLayout = Literal["bcss", "consep", "monusac", "monuseg"]
SlideLayout = Literal["camelyon16", "panda", "panda-small"]
CentreLayout = Literal["pathorob-camelyon", "pathorob-tcga", "pathorob-tolkach-esca"]

_NUCLEI = ["background", "other", "inflammatory", "epithelial", "spindle-shaped"]
_MONUSAC = ["background", "epithelial", "lymphocyte", "neutrophil", "macrophage"]
_BCSS = ["tumor", "stroma", "inflammatory", "necrosis", "other"]


def _probe(layout: ImageLayout, patience_epochs: int, **probe: Any) -> dict[str, Any]:
    return {"kind": "linear-probe", "layout": layout, "probe": {"patience_epochs": patience_epochs, **probe}}


def _slides(layout: SlideLayout | None, mpp: float, num_patches: int) -> dict[str, Any]:
    return {"kind": "slide", "layout": layout, "mpp": mpp, "num_patches": num_patches}


def _masks(layout: MaskLayout, classes: list[str], **fields: Any) -> dict[str, Any]:
    return {"kind": "segmentation", "layout": layout, "classes": classes, **fields}


def _decoder(name: str, patience_epochs: int) -> dict[str, Any]:
    return {"name": name, "low_lr_epochs": 5, "patience_epochs": patience_epochs}


def _centres(layout: CentreLayout, k: int) -> dict[str, Any]:
    """PathoROB's own k of each set, and its numbers of starts and trials."""
    numbers = {"k": k, "num_clusterings": 50, "num_drop_trials": 20}
    return {"kind": "centres", "layout": layout, "paired": layout == "pathorob-tcga", **numbers}


PRESETS: dict[str, dict[str, Any]] = {
    "bach": _probe("bach", 1250),
    "bracs": _probe("bracs", 167),
    "breakhis": _probe("breakhis", 500),
    "crc": _probe("crc", 7),
    "gleason": _probe("gleason", 42),
    "mhist": _probe("mhist", 278),
    "pcam": _probe("pcam", 3),
    # eva looks at validation every tenth epoch here, and its patience of 125 counts looks.
    "pcam-10shot": _probe("pcam", 1250, num_shots=10, num_runs=50, validate_every_epochs=10),
    "unitopatho": _probe("unitopatho", 100),
    "consep": _masks("consep", _NUCLEI, tile_px=250, decoder=_decoder("eva-with-image", 200)),
    "monusac": _masks("monusac", _MONUSAC, ignore_value=255, decoder=_decoder("eva-multi-stage", 100)),
    "monuseg": _masks("monuseg", ["background", "nucleus"]),
    "bcss": _masks(
        "bcss",
        _BCSS,
        background=None,
        ignore_value=255,
        tile_px=224,
        decoder=_decoder("eva-multi-stage", 200),
    ),
    "camelyon16": _slides("camelyon16", 0.25, 10_000),
    "camelyon16-small": _slides("camelyon16", 0.25, 1_000),
    "panda": _slides("panda", 0.5, 1_000),
    "panda-small": _slides("panda-small", 0.5, 200),
    "tp53": _slides(None, 0.5, 1_000),
    "pathorob-camelyon": _centres("pathorob-camelyon", 11),
    "pathorob-tcga": _centres("pathorob-tcga", 61),
    "pathorob-tolkach-esca": _centres("pathorob-tolkach-esca", 46),
}


def expand_preset(task: Any) -> Any:
    """`{preset: bach, dataset: URI}` as the task it stands for; any other value as it is.

    What the line says itself goes before the preset, key by key; with a `kind` of its own it takes
    nothing but the layout from it. Raises ValueError for a preset that does not exist.
    """
    if not isinstance(task, dict) or "preset" not in task:
        return task
    own = {key: value for key, value in task.items() if key != "preset"}
    name = str(task["preset"])
    if name not in PRESETS:
        raise ValueError(f"no preset {name}; {nearest_of(name, PRESETS)}")
    preset = PRESETS[name]
    if own.get("kind", preset["kind"]) != preset["kind"]:
        preset = {"layout": preset["layout"]}
    return {"name": name, **_merged(preset, own)}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            merged[key] = _merged(base[key], over[key])
    return merged
