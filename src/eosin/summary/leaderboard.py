"""Every model side by side: this run, earlier runs, baselines and what others have published."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from eosin.layout import RANDOM_INIT
from eosin.summary.earlier import EarlierRun
from eosin.summary.headline import Line, baselines_of
from eosin.summary.names import model_label
from eosin.summary.results import Result

PAPER = "arXiv 2404.15217"
LEADERBOARD = "eva leaderboard, November 2026"

# By eva's protocol, means of several runs, as printed by the source, of the presets that follow it: eva's
# slides are those of its small sets. What eosin judges otherwise (TP53, MoNuSAC) has none.
_COLUMNS = {
    PAPER: ("bach", "crc", "mhist", "pcam"),
    LEADERBOARD: (
        *("bach", "breakhis", "crc", "gleason", "mhist", "pcam", "camelyon16-small", "panda-small", "consep"),
    ),
}
_FIGURES: dict[str, dict[str, tuple[float, ...]]] = {
    PAPER: {
        "kaiko ViT-S/16": (0.797, 0.943, 0.828, 0.893),
        "kaiko ViT-S/8": (0.834, 0.946, 0.832, 0.887),
        "kaiko ViT-B/16": (0.810, 0.960, 0.826, 0.898),
        "kaiko ViT-B/8": (0.865, 0.956, 0.809, 0.921),
        "kaiko ViT-L/14": (0.870, 0.930, 0.809, 0.908),
    },
    LEADERBOARD: {
        "Virchow2": (0.883, 0.821, 0.967, 0.783, 0.861, 0.938, 0.861, 0.646, 0.640),
        "UNI2-h": (0.915, 0.859, 0.965, 0.775, 0.824, 0.950, 0.849, 0.657, 0.630),
        "Midnight-12k": (0.904, 0.819, 0.966, 0.800, 0.804, 0.929, 0.849, 0.649, 0.623),
        "H-optimus-0": (0.759, 0.801, 0.955, 0.770, 0.843, 0.943, 0.827, 0.671, 0.644),
        "kaiko ViT-B/8": (0.866, 0.832, 0.959, 0.744, 0.829, 0.915, 0.814, 0.640, 0.646),
        "kaiko ViT-L/14": (0.864, 0.837, 0.938, 0.749, 0.830, 0.911, 0.816, 0.645, 0.635),
        "kaiko ViT-S/16": (0.812, 0.734, 0.940, 0.698, 0.831, 0.902, 0.788, 0.621, 0.603),
    },
}  # fmt: skip


_KINDS = ("linear-probe", "slide")
_EVA_SEGMENTATION = "segmentation-eva v1"


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

    Neither a task's name nor its layout is enough; segmentation must be by eva's decoder and tiles.
    """
    presets = {
        r.task: r.preset
        for r in results
        if r.status == "ok"
        and r.preset
        and (r.kind in _KINDS or (r.kind == "segmentation" and r.protocol == _EVA_SEGMENTATION))
    }
    return [
        PublishedFigure(
            task, model, "tile_dice" if dataset == "consep" else "balanced_accuracy",
            values[_COLUMNS[source].index(dataset)], source,
        )
        for task, dataset in presets.items()
        for source, models in _FIGURES.items()
        if dataset in _COLUMNS[source]
        for model, values in models.items()
    ]  # fmt: skip


Source = Literal["this run", "earlier run", "baseline", "published"]
Column = tuple[str, str]
"""(task, metric)."""


@dataclass(frozen=True)
class Cell:
    """A figure of the leaderboard, mean and standard deviation over runs."""

    mean: float
    std: float
    num_runs: int
    doubt: str = ""
    """Why the figure does not compare with this run's; empty where it does."""
    is_best: bool = False
    """Best of its column among the figures without a doubt."""


@dataclass(frozen=True)
class Row:
    """A model of the leaderboard, and where its figures are from."""

    label: str
    source: Source
    cells: Mapping[Column, Cell]


@dataclass(frozen=True)
class Leaderboard:
    """Models side by side on the headline figures."""

    columns: tuple[Line, ...]
    rows: tuple[Row, ...]

    @property
    def adds(self) -> bool:
        """Whether it says more than the headline table: there is something else to stand beside."""
        return any(row.source in ("earlier run", "published") for row in self.rows)

    def blocks(self, num_columns: int) -> "list[Leaderboard]":
        """Cut into tables of at most so many columns, each with the rows that have a figure in it."""
        parts = [self.columns[i : i + num_columns] for i in range(0, len(self.columns), num_columns)]
        blocks = []
        for part in parts:
            wanted = {line_column(line) for line in part}
            blocks.append(Leaderboard(part, tuple(row for row in self.rows if wanted & set(row.cells))))
        return blocks


def leaderboard(
    lines: Sequence[Line],
    results: Sequence[Result],
    earlier: Sequence[EarlierRun],
    published: Sequence[PublishedFigure],
) -> Leaderboard:
    """`lines` are the columns; rows come in the order a reader asks for them."""
    basis = {(r.task, str(r.metric)): r for r in results if r.status == "ok" and r.metric}
    rows = [
        *_own(lines),
        *(_earlier(run, lines, basis) for run in earlier),
        *_baselines(lines),
        *_published(lines, published),
    ]
    best = {line_column(line): _best(line, rows) for line in lines}
    return Leaderboard(tuple(lines), tuple(_marked(row, best) for row in rows if row.cells))


def line_column(line: Line) -> Column:
    """The column that a headline line stands for."""
    return line.task, line.metric


def _own(lines: Sequence[Line]) -> list[Row]:
    last = {line_column(line): line.last for line in lines}
    best = {line_column(line): line.best for line in lines}
    rows = [_row(_labels(last.values(), "last teacher"), "this run", last)]
    if best != last:
        rows.insert(0, _row("best teacher of each task", "this run", best))
    return rows


def _labels(results: Iterable[Result | None], fallback: str) -> str:
    models = {result.model for result in results if result}
    return f"{fallback}, {model_label(models.pop())}" if len(models) == 1 else fallback


def _earlier(run: EarlierRun, lines: Sequence[Line], basis: Mapping[Column, Result]) -> Row:
    cells: dict[Column, Cell] = {}
    for line in lines:
        column = line_column(line)
        found = [r for r in run.results if (r.task, r.metric) == column and r.status == "ok"]
        teachers = [r for r in found if r.step is not None and r.model != RANDOM_INIT]
        if teachers:
            newest = max(teachers, key=lambda r: r.step or 0)
            cells[column] = _cell(newest, _doubt(newest, basis.get(column)))
    return Row(run.name, "earlier run", cells)


def _doubt(theirs: Result, ours: Result | None) -> str:
    if ours is None:
        return ""
    if not theirs.dataset_digest or theirs.dataset_digest != ours.dataset_digest:
        return "judged on other data"
    return "" if theirs.protocol == ours.protocol else "judged by another protocol"


def _baselines(lines: Sequence[Line]) -> list[Row]:
    rows = [
        _row(model_label(model), "baseline", {line_column(line): line.of(model) for line in lines})
        for model in baselines_of(lines)
    ]
    return [*rows, _row(RANDOM_INIT, "baseline", {line_column(line): line.random_init for line in lines})]


def _published(lines: Sequence[Line], figures: Sequence[PublishedFigure]) -> list[Row]:
    columns = {line_column(line) for line in lines}
    labels = dict.fromkeys((each.model, each.source) for each in figures)
    return [
        Row(f"{model} ({source})", "published", {
            (each.task, each.metric): Cell(each.value, 0.0, 1, "as its source prints it")
            for each in figures
            if (each.model, each.source) == (model, source) and (each.task, each.metric) in columns
        })
        for model, source in labels
    ]  # fmt: skip


def _row(label: str, source: Source, results: Mapping[Column, Result | None]) -> Row:
    return Row(label, source, {column: _cell(result) for column, result in results.items() if result})


def _cell(result: Result, doubt: str = "") -> Cell:
    assert result.mean is not None
    return Cell(result.mean, result.std or 0.0, result.num_runs, doubt)


def _best(line: Line, rows: Sequence[Row]) -> float | None:
    column = line_column(line)
    means = [row.cells[column].mean for row in rows if column in row.cells and not row.cells[column].doubt]
    if not means or (len(means) > 1 and min(means) == max(means)):
        return None
    return max(means) if line.higher_is_better else min(means)


def _marked(row: Row, best: Mapping[Column, float | None]) -> Row:
    cells = {
        column: replace(cell, is_best=not cell.doubt and cell.mean == best[column])
        for column, cell in row.cells.items()
    }
    return replace(row, cells=cells)
