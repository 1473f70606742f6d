"""Segmentation: Dice of decoders trained on frozen patch tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import MissingImage
from eosin.evaluation.datasets.masks import Classes, MaskedDataset
from eosin.evaluation.datasets.splits import Split, split_samples
from eosin.evaluation.embeddings.tokens import TILES_VERSION, Tile, TileTokens, cut, tile_tokens
from eosin.evaluation.heads.decoder import (
    DECODERS,
    SplitTiles,
    TrainedDecoder,
    mean_dice,
    pixel_confusion,
    tile_dice,
    train_decoder,
)
from eosin.evaluation.heads.runs import run_seed
from eosin.evaluation.pictures import Example, class_color, panel
from eosin.evaluation.task import TaskContext, TaskResult
from eosin.evaluation.transform import decode_image
from eosin.metrics.classification import dice, recalls
from eosin.metrics.intervals import interval, interval_over
from eosin.records import MetricValue
from eosin.records.details import LeftOut, SegmentationDetails
from eosin.words import counted

if TYPE_CHECKING:
    from eosin.evaluation.tasks.segmentation import SegmentationTask

_MAX_SHOWN = 4
_MAX_COUNTS = 50_000


def run_segmentation(
    settings: "SegmentationTask", dataset: MaskedDataset, context: TaskContext
) -> TaskResult:
    """Dice by class over `decoder.num_runs` runs, with a picture of a few judged tiles.

    Raises `UserError` where there is nothing to tell apart, and as `tile_tokens` does.
    """
    found = tile_tokens(
        context.model, dataset,
        num_classes=len(settings.classes) if settings.classes else None, ignore_value=settings.ignore_value,
        max_tiles=settings.max_tiles, max_gib=settings.max_tokens_gib,
        batch_size=context.config.evaluate.batch_size, log=context.log, tile_px=settings.tile_px,
        keep_images=settings.decoder.is_eva,
    )  # fmt: skip
    context.told = {"num_dropped": found.num_dropped, "dropped": found.dropped}
    parts = _split(settings, dataset, found)
    num_classes = found.coding.num_classes
    runs: list[TrainedDecoder] = []
    predicted: list[Classes] = []
    for run in range(settings.decoder.num_runs):
        seed = run_seed(context.config.seed, run)
        runs.append(
            train_decoder(parts.train, parts.val, num_classes, settings.decoder, parts.counted, seed=seed)
        )
        predicted.append(runs[-1].predict(parts.judged))
        context.log.progress(run + 1, settings.decoder.num_runs, "decoders", model=context.model.name)
    confusions = [pixel_confusion(parts.judged.classes, each, num_classes) for each in predicted]
    metrics = _metrics(parts, confusions)
    if settings.decoder.is_eva:
        scores = [tile_dice(parts.judged.classes, each, parts.counted) for each in predicted]
        metrics = {"tile_dice": MetricValue.of([float(np.nanmean(each)) for each in scores]), **metrics}
    details = _details(settings, dataset, found, parts, runs, confusions, predicted)
    picture = _picture(settings, dataset, parts, predicted[0])
    return TaskResult(metrics, details, len(found.tiles), (picture,) if picture else ())


@dataclass(frozen=True)
class _Parts:
    class_names: tuple[str, ...]
    counted: tuple[int, ...]
    """Classes whose mean is the headline figure: those in the judged truth, without background."""
    train: SplitTiles
    val: SplitTiles
    judged: SplitTiles
    judged_tiles: tuple[Tile, ...]
    split: Split


def _split(settings: "SegmentationTask", dataset: MaskedDataset, found: TileTokens) -> _Parts:
    # Whole images, and before dropping: one that cannot be read must not move another to the other side.
    split = split_samples(dataset.samples)
    names = class_names(settings, found.coding.num_classes)
    train, val, judged = (
        [i for i, tile in enumerate(found.tiles) if tile.row in set(rows)]
        for rows in (split.train, split.val, split.judged_indices)
    )
    parts = [SplitTiles(found, np.array(chosen, dtype=np.int64)) for chosen in (train, val, judged)]
    counts = pixel_counts(parts[2].classes, len(names))
    _require(dataset, split, parts[0], names, "training", 2)
    _require(dataset, split, parts[2], names, split.judged, 1)
    counted = tuple(c for c in range(len(names)) if c != settings.background and counts[c])
    if not counted:
        raise UserError(
            f"{dataset.uri}: the {split.judged} split shows {names[settings.background or 0]} only",
            hint="the mean Dice leaves the background out: set background, or give masks with other classes",
        )
    tiles = tuple(found.tiles[i] for i in judged)
    return _Parts(names, counted, parts[0], parts[1], parts[2], tiles, split)


def class_names(settings: "SegmentationTask", num_classes: int) -> tuple[str, ...]:
    """Those the task gives; else background, and the others by number."""
    if settings.classes:
        return settings.classes
    return tuple("background" if c == settings.background else f"class {c}" for c in range(num_classes))


def pixel_counts(classes: Classes, num_classes: int) -> list[int]:
    """Pixels of each class; ignored ones are left out."""
    counts = np.bincount(classes.ravel(), minlength=num_classes)
    return [int(count) for count in counts[:num_classes]]


def _require(
    dataset: MaskedDataset, split: Split, part: SplitTiles, names: Sequence[str], where: str, num: int
) -> None:
    there = [names[c] for c, count in enumerate(pixel_counts(part.classes, len(names))) if count]
    if len(there) < num:
        raise UserError(
            f"{dataset.uri}: the {where} split has {counted(len(part), 'usable tile')} of "
            f"{counted(len(there), 'class')} ({', '.join(there) or 'none'}); at least {num} needed",
            hint=f"its split has {counted(len(split.train), 'image')} in train, {len(split.val)} in val, "
            f"{len(split.test)} in test",
        )


def _details(
    settings: "SegmentationTask",
    dataset: MaskedDataset,
    found: TileTokens,
    parts: _Parts,
    runs: Sequence[TrainedDecoder],
    confusions: Sequence[npt.NDArray[np.int64]],
    predicted: Sequence[Classes],
) -> SegmentationDetails:
    names, total = parts.class_names, np.sum(confusions, axis=0)
    return SegmentationDetails(
        classes=names,
        background=settings.background,
        judged_on=parts.split.judged,
        unit=f"tiles of {found.classes.shape[1]} px",
        num_images=len(dataset.samples) + len(dataset.unpaired),
        num_train=len(parts.train),
        num_val=len(parts.val),
        num_judged=len(parts.judged),
        class_pixels=dict(zip(names, pixel_counts(parts.judged.classes, len(names)), strict=True)),
        colors={
            name: "#{:02x}{:02x}{:02x}".format(*class_color(c))
            for c, name in enumerate(names)
            if c != settings.background
        },
        notes=tuple(_notes(settings, found, parts)),
        num_dropped=found.num_dropped,
        dropped=tuple(LeftOut.model_validate(each) for each in found.dropped),
        transform=f"tiles-at-native-scale v{TILES_VERSION}",
        confusion=total.tolist(),
        recall=dict(zip(names, recalls(total), strict=True)),
        best_step=tuple(run.best_step for run in runs),
        validation_score=tuple(run.best_score for run in runs),
        counted_classes=parts.counted,
        decoder=DECODERS[settings.decoder.name],
        **_by_group(dataset, parts, predicted),
    )


def _notes(settings: "SegmentationTask", found: TileTokens, parts: _Parts) -> list[str]:
    names, notes = parts.class_names, [*parts.split.notes]
    if found.num_tiles_there > settings.max_tiles:
        notes.append(f"{settings.max_tiles} of {found.num_tiles_there} tiles are drawn (max_tiles)")
    for where, part in (("training", parts.train), ("the judged split", parts.judged)):
        counts = pixel_counts(part.classes, len(names))
        absent = [name for name, count in zip(names, counts, strict=True) if not count]
        if absent:
            notes.append(f"no pixel of {', '.join(absent)} in {where}")
    if not len(parts.val):
        notes.append("no validation tiles: the last step is judged, not the best")
    return notes


def _metrics(parts: _Parts, confusions: Sequence[npt.NDArray[np.int64]]) -> dict[str, MetricValue]:
    metrics = {"dice": MetricValue.of([mean_dice(c, parts.counted) for c in confusions])}
    for c, name in enumerate(parts.class_names):
        if confusions[0][c].sum():
            metrics[f"dice_{name}"] = MetricValue.of([dice(each)[c] or 0.0 for each in confusions])
    return metrics


def _by_group(dataset: MaskedDataset, parts: _Parts, predicted: Sequence[Classes]) -> dict[str, Any]:
    """Interval of the mean Dice over patients (images where not all patients are known), of all runs.

    The counts of each group are told too, so that two models can be compared on the same ones.
    """
    samples = [dataset.samples[tile.row] for tile in parts.judged_tiles]
    by_patient = all(sample.patient for sample in samples)
    names = [sample.patient if by_patient else sample.source for sample in samples]
    place = {name: i for i, name in enumerate(sorted(set(names)))}
    num_classes = len(parts.class_names)
    counts = np.zeros((len(place), num_classes, num_classes), dtype=np.int64)
    for run in predicted:
        for i, name in enumerate(names):
            tile = slice(i, i + 1)
            counts[place[name]] += pixel_confusion(parts.judged.classes[tile], run[tile], num_classes)
    found = interval(counts, "dice", counted=parts.counted)
    return {
        "intervals": {"dice": (found.low, found.high)} if found else {},
        "interval_over": interval_over(len(place), "patients" if by_patient else "images"),
        "group_confusions": dict(zip(place, counts.tolist(), strict=True))
        if counts.size <= _MAX_COUNTS
        else {},
    }


def _picture(
    settings: "SegmentationTask", dataset: MaskedDataset, parts: _Parts, predicted: Classes
) -> Example | None:
    """Of tiles spread evenly over those that show a counted class; the first run's prediction."""
    showing = [i for i, each in enumerate(parts.judged.classes) if np.isin(each, parts.counted).any()]
    num = min(_MAX_SHOWN, len(showing))
    chosen = [showing[i * len(showing) // num] for i in range(num)]
    rows = []
    for i in chosen:
        tile, truth = parts.judged_tiles[i], parts.judged.classes[i]
        data = dataset.read([tile.row])[0]
        if isinstance(data, MissingImage):  # taken away since: the figures stand, the picture does without
            continue
        image = np.asarray(decode_image(data), dtype=np.uint8)
        pixels, _ = cut(image, np.zeros(image.shape[:2], dtype=np.uint8), tile, truth.shape[0])
        rows.append((pixels, truth, predicted[i]))
    caption = "Patch, truth, prediction of the first run"
    return Example("panel", panel(rows, settings.background), caption) if rows else None
