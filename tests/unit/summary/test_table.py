"""The table at the end of the demo."""

from pathlib import Path

import pytest

from eosin.errors import PermanentError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.storage import open_store
from eosin.summary.names import number, signed
from eosin.summary.summarize import summarize
from eosin.summary.terminal import terminal_table
from tests.support.summary import TASKS, fake_run, put_record, record


def _table(run: str) -> str:
    summarize(run, log=RunLog("summarize-test"))
    return terminal_table(open_store(run).get(RunLayout.SUMMARY_JSON))


def test_it_shows_what_training_brought(tmp_path: Path) -> None:
    text = _table(fake_run(tmp_path))
    lines = {tuple(line.split()[:2]): line for line in text.splitlines() if line.strip()}
    assert "random-init" in text and "step 300" in text
    assert lines["heldout", "RankMe"].split()[-5:] == ["3.000", "36.8", "+33.8", "not", "tested"]
    assert lines["heldout", "ODCorr"].split()[-3:] == ["−0.300", "not", "tested"]
    assert "±" in lines["textures-linear", "balanced"]
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "\x1b" not in text


def test_a_worse_figure_and_a_failure_are_not_hidden(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    put_record(store, record("step-00000300", 300, TASKS[0], -0.02))
    put_record(
        store, record("step-00000300", 300, TASKS[1], 0, status="failed", metrics={}, reason="[bold]no[/]")
    )
    text = _table(run)
    assert "−0.900 not tested" in " ".join(text.split()), "one value: its sign is told, and no more"
    assert "failed: step-00000300 · textures-knn: [bold]no[/]" in text


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"headline": 1}', b"\xff"])
def test_what_is_no_summary_is_refused(data: bytes) -> None:
    with pytest.raises(PermanentError, match="not a RunSummary"):
        terminal_table(data)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (123.4, "123.4"),
        (12_345.6, "12,346"),
        (1e-5, "1.00e-05"),
        (3.2e8, "3.20e+08"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_signs_are_always_there() -> None:
    assert (signed(0.5), signed(-0.5)) == ("+0.500", "−0.500")
