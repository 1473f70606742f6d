"""summary.json: the report for machines. Its schema is templates/summary.schema.json."""

from __future__ import annotations

import json
from typing import Any

from eosin.records import PatchSetManifest
from eosin.summary.headline import Line
from eosin.summary.leaderboard import Row
from eosin.summary.report import Report
from eosin.summary.result import Result
from eosin.summary.slides_view import Rejected

SCHEMA_VERSION = 1


def document(report: Report) -> dict[str, Any]:
    """JSON values only. Dates are in `provenance` alone, so that the rest repeats with the same inputs."""
    training = report.published.training
    return {
        "schema_version": SCHEMA_VERSION,
        "run": report.published.run_uri,
        "recipe": report.published.config.recipe,
        "config_digest": report.published.config.digest(),
        "verdict": report.verdict,
        "evaluations": report.statuses,
        "results": [result.model_dump(mode="json") for result in report.results],
        "headline": [_line(line) for line in report.lines],
        "side_by_side": [_row(row) for row in report.leaderboard.rows],
        "training": None
        if training is None
        else {
            "num_steps": training.num_steps,
            "final_loss": training.final_loss,
            "models": list(training.models),
        },
        "data": _data(report),
        "problems": list(report.published.problems),
        "provenance": report.provenance,
    }


def to_json(report: Report) -> bytes:
    """summary.json: the document as indented JSON, UTF-8; no number in it is NaN."""
    return (json.dumps(document(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _line(line: Line) -> dict[str, Any]:
    test = line.significance
    return {
        "task": line.task,
        "metric": line.metric,
        "higher_is_better": line.higher_is_better,
        "random_init": _figure(line.random_init),
        "last": _figure(line.last),
        "best": _figure(line.best),
        "change": line.change,
        "improved": line.improved,
        "outcome": line.outcome,
        "p_value": test.p_value if test else None,
        "test": test.how if test else "",
    }


def _row(row: Row) -> dict[str, Any]:
    figures = [
        {"task": task, "metric": metric, "mean": cell.mean, "std": cell.std, "doubt": cell.doubt}
        for (task, metric), cell in row.cells.items()
    ]
    return {"model": row.label, "source": row.source, "figures": figures}


def _figure(result: Result | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"model": result.model, "step": result.step, "mean": result.mean, "std": result.std}


def _data(report: Report) -> dict[str, Any]:
    slides = report.slides
    return {
        "num_slides": slides.num_slides if slides else None,
        "num_used": slides.num_ok if slides else None,
        "tissue_mm2": slides.tissue_mm2 if slides else None,
        "rejected": [_rejected(group) for group in (slides.rejected if slides else ())],
        "patch_sets": [_patch_set(each.manifest) for each in report.patch_sets],
    }


def _rejected(group: Rejected) -> dict[str, Any]:
    return {
        "status": group.status,
        "reason": group.words,
        "cure": group.cure,
        "num_slides": group.num_slides,
        "slides": [{"slide": slide, "detail": detail} for slide, detail in group.slides],
    }


def _patch_set(manifest: PatchSetManifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "num_patches": manifest.num_patches,
        "digest": manifest.digest,
        "num_slides": len(manifest.slides),
        "num_rejected": len(manifest.rejected),
    }
