"""`make gpu-report`: its table, its limits, and that what it measures by still runs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def report() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_report", BENCHMARKS / "gpu_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_report"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_runs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "no NVIDIA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_gpu_test_and_benchmark_is_a_part(report: Any) -> None:
    words = " ".join(word for part in report.parts() for word in part.command)
    for path in (*(BENCHMARKS.parent / "tests/gpu").glob("test_*.py"), *BENCHMARKS.glob("*_gpu.py")):
        assert str(path) in words
    assert {"training S/16", "training B/16", "training L/14"} <= {part.name for part in report.parts()}


def test_parts_are_measured_bounded_and_kept(report: Any, tmp_path: Path, capsys: Any) -> None:
    """With the real training benchmark on this CPU, a real run of pytest, and a part that never ends."""
    python = sys.executable
    (tmp_path / "test_two.py").write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    toy = (python, str(BENCHMARKS / "training.py"), "--network", "toy", "--rounds", "1", "--no-stream",
           "--json", "OUT")  # fmt: skip
    pytest_ = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null",
               str(tmp_path / "test_two.py"), "--junitxml", "OUT")  # fmt: skip
    sleeps = (
        python,
        "-c",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
    )
    known = [
        report.Part("training toy", toy, report.of_training),
        report.Part("tests", pytest_, report.of_tests),
        report.Part("endless", sleeps, report.of_patching),
    ]
    out = ["--out", str(tmp_path / "out")]
    assert report.main([*out, "--part", "training toy", "--limit", "200"], known, "a CPU") == 1
    rows = json.loads((tmp_path / "out" / "training-toy.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["toy, plain", "toy, ours", "toy, ours against the plain step"]
    assert report.main([*out, "--part", "tests", "--part", "endless", "--limit", "20"], known, "a CPU") == 1
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| tests | tests | 1 of 2 passed, 0 skipped | all | **no** |" in text
    assert "| tests | test_bad | failed | passes | **no** |" in text
    assert "| endless | the part itself | not done in 20 s | ends well | **no** |" in text
    assert "| training toy | toy, ours |" in text, "what an earlier call found is still there"


def test_a_peer_is_measured_where_there_is_one(report: Any, tmp_path: Path, capsys: Any) -> None:
    """Its part is left out without `--peer`; with it the ratio has a row of its own, held to the aim."""
    result = {"network": "S/14", "ratio": 1.5, "peer_ratio": 1.2,
              "ways": {"ours": {"images_per_s": 12.0, "mfu": 0.4}}}  # fmt: skip
    says = (
        "import sys, pathlib; pathlib.Path(sys.argv[2]).write_text(sys.argv[3]); assert sys.argv[1] == '/p'"
    )
    command = (sys.executable, "-c", says, "PEER", "OUT", json.dumps({"results": [result]}))
    known, out = [report.Part("beside", command, report.of_training)], ["--out", str(tmp_path / "out")]
    assert report.main(out, known, "a CPU") == 0
    assert "lightly-train" in capsys.readouterr().err and not (tmp_path / "out" / "beside.json").exists()
    assert report.main([*out, "--peer", "/p"], known, "a CPU") == 1
    assert "| S/14, ours against lightly-train | 1.20× | ≥ 1.3× | **no** |" in capsys.readouterr().out
