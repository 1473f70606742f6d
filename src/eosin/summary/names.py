"""Names of metrics and models for people."""

from typing import Any

from eosin.layout import RANDOM_INIT, step_of

_METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "top1": "top-1 accuracy",
    "f1_macro": "macro F1",
    "calibration_error": "calibration error",
    "dice": "Dice",
    "tile_dice": "Dice, mean over tiles",
    "c_index": "concordance index",
    "map_at_k": "mAP of the nearest",
    "majority_vote": "majority of the nearest",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "quadratic_kappa": "quadratic kappa",
    "rankme": "RankMe",
    "odcorr": "ODCorr",
    "odcorr_samples": "ODCorr of samples",
    "rotation_retrieval": "found again after rotation",
    "flip_retrieval": "found again after a flip",
    "stain_retrieval": "found again in another stain",
    "blur_retrieval": "found again when blurred",
    "rotation_agreement": "agreement under rotation",
    "flip_agreement": "agreement under a flip",
    "stain_agreement": "agreement in another stain",
    "blur_agreement": "agreement when blurred",
    "plism_score": "PLISM score",
    "cosine_similarity": "cosine of the same tissue",
    "pearson": "Pearson's correlation",
    "performance_drop_in_domain": "performance drop in domain",
    "performance_drop_out_of_domain": "performance drop out of domain",
    "same_class_neighbours": "neighbours of the same tissue",
    "same_centre_neighbours": "neighbours of the same centre",
}

_DICE_OF = "dice_"


def metric_name(metric: str) -> str:
    """A metric's name as people write it."""
    if metric.startswith(_DICE_OF):
        return f"Dice of {metric.removeprefix(_DICE_OF)}"
    return _METRICS.get(metric, metric.replace("_", " "))


def model_label(model: str) -> str:
    """`step 1,000` for a teacher, with its run where it is another's; `timm:ARCH@FILE` without the folder
    of the file; any other model by its own name."""
    arch, file, uri = model.partition("@")
    if file and model.startswith("timm:"):
        return f"{arch}@{uri.rpartition('/')[2]}"
    run, teachers, name = model.partition("/teachers/")
    if teachers:
        return f"{model_label(name)} of {run.rpartition('/')[2]}"
    step = step_of(model)
    return model if step is None or model == RANDOM_INIT else f"step {step:,}"


def number(value: float) -> str:
    """Three significant digits and no exponent where it can be read without one."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def figure(result: Any) -> str:
    """`0.512 ± 0.010` of what has mean, std and num_runs, without ± for a single run; a dash for None."""
    if result is None or result.mean is None:
        return "–"
    spread = f" ± {number(result.std)}" if result.std is not None and result.num_runs > 1 else ""
    return number(result.mean) + spread


def signed(value: float) -> str:
    """With its sign; a true minus."""
    return f"{'+' if value >= 0 else '−'}{number(abs(value))}"


def plain(text: str) -> str:
    """Plain text in a Markdown table: no markup, no HTML, one line."""
    flat = " ".join(text.split())
    for character in "\\`*_[]<>|#":
        flat = flat.replace(character, f"\\{character}")
    return flat
