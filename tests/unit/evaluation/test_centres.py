"""The centres task from a table of patches with their hospitals."""

from pathlib import Path

import pytest

from eosin.errors import UserError
from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.evaluate import evaluate
from eosin.records import MetricRecord
from tests.support.evaluation import COLORS, encoded, image, make_config, make_run, quiet_log
from tests.support.public_datasets import table

COLUMNS = ("path", "label", "patient", "centre", "mpp")


def _table(
    root: Path, *, centres: tuple[str, ...] = ("north", "south"), mpps: tuple[float, ...] = (0.5, 1.0)
) -> str:
    rows, seed = [], 0
    for name in ("red", "blue"):
        for centre in centres:
            for mpp in (0.5, 1.0):
                for n in range(3):
                    seed += 1
                    (root / "images").mkdir(parents=True, exist_ok=True)
                    (root / "images" / f"{seed}.png").write_bytes(encoded(image(COLORS[name], seed)))
                    rows.append((f"images/{seed}.png", name, f"{centre}{name}{n}", centre, mpp))
    table(root / "patches.csv", COLUMNS, rows)
    return f"file://{root}/patches.csv"


def _judge(folder: Path, dataset: str) -> MetricRecord:
    config = make_config([{"kind": "centres", "name": "c", "dataset": dataset, "k": 4}])
    return evaluate(make_run(folder, config), "random-init", "c", log=quiet_log())


def test_patches_that_differ_by_tissue_alone_have_the_best_index(tmp_path: Path) -> None:
    record = _judge(tmp_path, _table(tmp_path / "data"))
    assert record.status == "ok", record.reason
    assert record.metrics["robustness_index"].mean > 0.95
    assert record.metrics["same_centre_neighbours"].higher_is_better is False
    assert record.details.by_mpp.keys() == {"0.5", "1"}
    assert record.details.counts == {"red": {"north": 6, "south": 6}, "blue": {"north": 6, "south": 6}}


def test_an_empty_cell_is_told(tmp_path: Path) -> None:
    dataset = _table(tmp_path / "data", centres=("north", "south", "west"))
    path = tmp_path / "data" / "patches.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "westred" not in line))
    record = _judge(tmp_path, dataset)
    assert any("no patch of red from west" in note for note in record.details.notes)


def test_one_centre_is_refused(tmp_path: Path) -> None:
    record = _judge(tmp_path, _table(tmp_path / "data", centres=("north",)))
    assert record.status == "failed"
    assert "1 centre (north); two are needed" in record.reason


def test_an_mpp_that_is_no_number_is_named(tmp_path: Path) -> None:
    dataset = _table(tmp_path / "data")
    path = tmp_path / "data" / "patches.csv"
    path.write_text(path.read_text().replace(",0.5", ",20x", 1))
    with pytest.raises(UserError, match="row 1: mpp '20x' is no number above 0"):
        open_dataset(dataset)


def test_more_neighbours_than_patches_are_told(tmp_path: Path) -> None:
    dataset = _table(tmp_path / "data")
    config = make_config([{"kind": "centres", "name": "c", "dataset": dataset, "k": 61}])
    record = evaluate(make_run(tmp_path, config), "random-init", "c", log=quiet_log())
    assert (
        "k is 61, but patches have fewer others, all of which count whatever the model"
        in record.details.notes
    )
    assert not any("fewer others" in note for note in _judge(tmp_path / "again", dataset).details.notes)
