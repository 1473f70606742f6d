"""Kinds of task: found by their files, light to read, and their records as the schema says."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from eosin.config.task import task_kinds
from eosin.evaluation import tasks
from eosin.evaluation.evaluate import evaluate
from eosin.evaluation.task import Task
from eosin.layout import RANDOM_INIT
from eosin.records import MetricRecord
from eosin.records.details import DETAILS
from tests.support.evaluation import make_config, make_run, patch_rows, quiet_log, write_patch_set

HEAVY = ("numpy", "torch", "PIL", "cv2", "pyarrow")


def test_every_file_of_tasks_is_a_kind_with_details_of_its_own_or_the_common_ones() -> None:
    kinds = task_kinds()
    assert {"unsupervised", "knn", "linear-probe", "robustness", "segmentation", "centres", "slide"} <= set(
        kinds
    )
    assert all(issubclass(each, Task) for each in kinds.values())
    assert set(DETAILS) <= set(kinds)
    files = {Path(path.name).stem for path in Path(tasks.__path__[0]).glob("*.py")}
    assert {each.__module__.rpartition(".")[2] for each in kinds.values()} <= files


@pytest.mark.parametrize("first", ["eosin.config", "eosin.evaluation.tasks.knn", "eosin.evaluation.task"])
def test_whatever_is_imported_first_a_configuration_needs_nothing_heavy(first: str) -> None:
    code = f"import {first}, sys; from eosin.config import RunConfig; RunConfig(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in loaded.stdout.split()} & set(HEAVY)


@pytest.mark.parametrize("kind", ["unsupervised", "robustness", "knn", "linear-probe"])
def test_a_record_is_as_its_schema_says(kind: str, tmp_path: Path) -> None:
    data = write_patch_set(tmp_path / "data", patch_rows())
    labelled = kind in ("knn", "linear-probe")
    task = {"kind": kind, "name": "t", ("dataset" if labelled else "patch_set"): data}
    if kind == "linear-probe":
        task["probe"] = {"num_steps": 4, "num_runs": 2}
    run = make_run(tmp_path, make_config([task]))
    record = evaluate(run, RANDOM_INIT, "t", log=quiet_log())
    assert record.status == "ok", record.reason
    tree = json.loads(record.to_json())
    validator = jsonschema.Draft202012Validator(MetricRecord.model_json_schema())
    validator.validate(tree)
    tree["details"]["notes"] = 7
    assert list(validator.iter_errors(tree))
