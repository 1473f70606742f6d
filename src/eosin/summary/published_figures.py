"""Published figures of other models on public datasets: shown beside ours, never mixed with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eosin.summary.result import Result

PAPER = "arXiv 2404.15217"
LEADERBOARD = "eva leaderboard, November 2026"

_DICE = ("consep", "monusac")
# By eva's protocol, means of several runs, as printed by the source; None where it prints no figure.
_COLUMNS = {
    PAPER: ("bach", "crc", "mhist", "pcam", "tp53"),
    LEADERBOARD: ("bach", "breakhis", "crc", "gleason", "mhist", "pcam", "camelyon16", "panda", *_DICE),
}
_FIGURES: dict[str, dict[str, tuple[float | None, ...]]] = {
    PAPER: {
        "kaiko ViT-S/16": (0.797, 0.943, 0.828, 0.893, None),
        "kaiko ViT-S/8": (0.834, 0.946, 0.832, 0.887, 0.621),
        "kaiko ViT-B/16": (0.810, 0.960, 0.826, 0.898, 0.651),
        "kaiko ViT-B/8": (0.865, 0.956, 0.809, 0.921, None),
        "kaiko ViT-L/14": (0.870, 0.930, 0.809, 0.908, 0.656),
    },
    LEADERBOARD: {
        "Virchow2": (0.883, 0.821, 0.967, 0.783, 0.861, 0.938, 0.861, 0.646, 0.640, 0.669),
        "UNI2-h": (0.915, 0.859, 0.965, 0.775, 0.824, 0.950, 0.849, 0.657, 0.630, 0.642),
        "Midnight-12k": (0.904, 0.819, 0.966, 0.800, 0.804, 0.929, 0.849, 0.649, 0.623, 0.659),
        "H-optimus-0": (0.759, 0.801, 0.955, 0.770, 0.843, 0.943, 0.827, 0.671, 0.644, 0.685),
        "kaiko ViT-B/8": (0.866, 0.832, 0.959, 0.744, 0.829, 0.915, 0.814, 0.640, 0.646, 0.680),
        "kaiko ViT-L/14": (0.864, 0.837, 0.938, 0.749, 0.830, 0.911, 0.816, 0.645, 0.635, 0.670),
        "kaiko ViT-S/16": (0.812, 0.734, 0.940, 0.698, 0.831, 0.902, 0.788, 0.621, 0.603, 0.635),
    },
}  # fmt: skip


_KINDS = ("linear-probe", "slide")


@dataclass(frozen=True)
class PublishedFigure:
    """A figure that others have published for a task like one of this run."""

    task: str
    """This run's task."""
    model: str
    metric: str
    value: float
    source: str


def published_figures(results: Sequence[Result]) -> list[PublishedFigure]:
    """Beside tasks that follow the preset of a public dataset, whole and unchanged; beside no others.

    Neither a task's name nor its layout is enough; segmentation is left out, whose decoder here is not eva's.
    """
    presets = {r.task: r.preset for r in results if r.status == "ok" and r.preset and r.kind in _KINDS}
    return [
        PublishedFigure(task, model, "balanced_accuracy", value, source)
        for task, dataset in presets.items()
        for source, models in _FIGURES.items()
        if dataset in _COLUMNS[source]
        for model, values in models.items()
        if (value := values[_COLUMNS[source].index(dataset)]) is not None
    ]
