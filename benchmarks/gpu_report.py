"""Report of a machine's GPU: tests/gpu and every GPU benchmark, ten minutes a part at most, as one table.

    python benchmarks/gpu_report.py                    all parts, and build/gpu-report/report.md
    python benchmarks/gpu_report.py --part "training S/16" --part patching
    python benchmarks/gpu_report.py --peer PEER/bin/python      beside lightly-train 0.18, installed there

Each part is a process of its own, ended after `--limit` seconds; what it found is kept beside the table, so
that parts may be run one by one, and again. Exit code 0: all parts held; 1: one failed or took too long; 2:
there is no NVIDIA GPU that torch sees.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
# Of the plan: share of the matrix rate measured on the same device.
MFU_AIMS = {"S/16": 0.35, "B/16": 0.50, "L/14": 0.50}
RATIO_AIM, DATA_WAIT_AIM = 1.3, 0.03
_TAIL_LINES = 15


@dataclass(frozen=True)
class Row:
    """One line of the table; `aim` empty: none was set."""

    what: str
    figure: str
    aim: str = ""
    held: bool = True


@dataclass(frozen=True)
class Part:
    """A command that leaves something at the path it is given in place of OUT, and what to make of it.

    PEER in it stands for a Python with lightly-train.
    """

    name: str
    command: tuple[str, ...]
    read: Callable[[Path, str], list[Row]]
    """Rows of the file at OUT and of the standard output."""


def of_tests(path: Path, _: str) -> list[Row]:
    """Rows of a JUnit file: what ran, and each test that failed."""
    suite = next(ElementTree.parse(path).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"]
    ran = counts["tests"] - counts["skipped"]
    figure = f"{ran - bad} of {ran} passed, {counts['skipped']} skipped"
    rows = [Row("tests", figure, "all", held=not bad and ran > 0)]
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            rows.append(Row(str(case.get("name")), "failed", "passes", held=False))
    return rows


def of_training(path: Path, _: str) -> list[Row]:
    """Rows of what benchmarks/training.py writes with --json."""
    rows = []
    for result in json.loads(path.read_text())["results"]:
        network = result["network"]
        for way, found in result["ways"].items():
            aim = MFU_AIMS.get(network) if way == "ours" else None
            figure = f"{found['images_per_s']:.1f} images/s, MFU {found['mfu']:.1%}"
            rows.append(Row(f"{network}, {way}", figure, f"MFU ≥ {aim:.0%}" if aim else "",
                            held=aim is None or found["mfu"] >= aim))  # fmt: skip
            if "data_wait_share" in found:
                wait = found["data_wait_share"]
                rows.append(Row(f"{network}, waiting for patches", f"{wait:.1%} of the time",
                                f"< {DATA_WAIT_AIM:.0%}", held=wait < DATA_WAIT_AIM))  # fmt: skip
        ratio = result["ratio"]
        rows.append(Row(f"{network}, ours against the plain step", f"{ratio:.2f}×", f"≥ {RATIO_AIM}×",
                        held=ratio >= RATIO_AIM))  # fmt: skip
        if ratio := result.get("peer_ratio"):
            rows.append(Row(f"{network}, ours against lightly-train", f"{ratio:.2f}×", f"≥ {RATIO_AIM}×",
                            held=ratio >= RATIO_AIM))  # fmt: skip
    return rows


def of_patching(_: Path, output: str) -> list[Row]:
    """Rows of the JSON lines of benchmarks/patching_gpu.py."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [
        Row(line["way"], f"{line['patches_per_s']:.1f} patches/s, {line['ratio']:.2f}×") for line in lines
    ]


def parts() -> list[Part]:
    """All of them, in the order in which they are worth running."""
    python, here = sys.executable, ROOT / "benchmarks"
    tests = [
        Part(f"tests {path.stem.removeprefix('test_').removesuffix('_gpu')}",
             (python, "-m", "pytest", "-n", "0", "-q", "-m", "gpu", str(path), "--junitxml", "OUT"), of_tests)
        for path in sorted((ROOT / "tests/gpu").glob("test_*.py"))
    ]  # fmt: skip
    training = [
        Part(f"training {name}", (python, str(here / "training.py"), "--network", name, "--json", "OUT"),
             of_training)
        for name in ("S/16", "B/16", "L/14", "L/16")
    ]  # fmt: skip
    beside = [
        Part(f"lightly-train {name}", (python, str(here / "training.py"), "--network", name, "--no-stream",
                                       "--peer", "PEER", "--json", "OUT"), of_training)
        for name in ("S/14", "B/14")
    ]  # fmt: skip
    patching = Part("patching", (python, str(here / "patching_gpu.py")), of_patching)
    return [*tests, *training, *beside, patching]


def run_part(part: Part, folder: Path, limit_s: float, peer: str = "") -> dict[str, object]:
    """Run `part` for at most `limit_s` seconds, and keep what it found in `folder`."""
    stem = part.name.replace("/", "").replace(" ", "-")
    out = folder / f"{stem}.out"
    out.unlink(missing_ok=True)
    began_s = time.monotonic()
    # A session of its own, so that nothing of it outlives its time.
    command = [{"OUT": str(out), "PEER": peer}.get(word, word) for word in part.command]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
        problem = "" if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        problem = f"not done in {limit_s:g} s"
    try:
        rows = part.read(out, output)
    except (OSError, ValueError, KeyError, StopIteration, ElementTree.ParseError):
        rows = []
    if not rows and not problem:
        problem = "it found nothing"
    if problem:
        print("\n".join(output.splitlines()[-_TAIL_LINES:]), file=sys.stderr)
        rows.append(Row("the part itself", problem, "ends well", held=False))
    found = {"part": part.name, "seconds": round(time.monotonic() - began_s, 1),
             "date": datetime.now(UTC).date().isoformat(), "rows": [asdict(row) for row in rows]}  # fmt: skip
    (folder / f"{stem}.json").write_text(json.dumps(found, indent=2))
    return found


def table(found: Sequence[dict[str, object]], device: str) -> str:
    """All that was found as a Markdown table."""
    lines = [
        f"# {device}",
        "",
        "| part | what | figure | aim | held | seconds, date |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        rows = [Row(**row) for row in each["rows"]]  # type: ignore[attr-defined]  # of our own JSON
        for row in rows:
            held = "yes" if row.held else "**no**"
            ending = f"{held if row.aim else ''} | {each['seconds']}, {each['date']} |"
            lines.append(f"| {each['part']} | {row.what} | {row.figure} | {row.aim} | {ending}")
    return "\n".join(lines) + "\n"


def describe_device() -> str:
    """Name of the GPU, torch and its CUDA; empty where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    found = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    return f"{count} × {found.name}, {found.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"


def main(
    arguments: Sequence[str] | None = None, known: Sequence[Part] | None = None, device: str = ""
) -> int:
    """See the module. `known`, `device`: in place of the parts and the GPU there are."""
    known = parts() if known is None else known
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=[part.name for part in known])
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a part")
    parser.add_argument("--peer", default="", help="a Python that has lightly-train 0.18")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-report")
    args = parser.parse_args(arguments)
    device = device or describe_device()
    if not device:
        print("gpu-report: torch sees no NVIDIA GPU on this machine: nothing was run", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in known if not args.part or part.name in args.part]
    if not args.peer and any("PEER" in part.command for part in chosen):
        print("gpu-report: without --peer PYTHON nothing stands beside lightly-train", file=sys.stderr)
        chosen = [part for part in chosen if "PEER" not in part.command]
    for part in chosen:
        print(f"gpu-report: {part.name}", file=sys.stderr, flush=True)
        run_part(part, args.out, args.limit, args.peer)
    # With those of earlier calls.
    files = [args.out / f"{part.name.replace('/', '').replace(' ', '-')}.json" for part in known]
    found = [json.loads(path.read_text()) for path in files if path.exists()]
    text = table(found, device)
    (args.out / "report.md").write_text(text)
    print(text)
    ran = {part.name for part in chosen}
    return int(any(not row["held"] for each in found if each["part"] in ran for row in each["rows"]))


if __name__ == "__main__":
    sys.exit(main())
