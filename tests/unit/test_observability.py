"""Logs that outlive the process, and never stop it."""

import json
import logging
from pathlib import Path

import pytest

from eosin.layout import RunLayout
from eosin.observability import RunLog, event_text, show_warnings
from eosin.status import read_logs
from eosin.storage import open_store
from eosin.words import size_text


def lines(uri: str) -> list[dict[str, object]]:
    store = open_store(uri)
    keys = [info.key for info in store.list(RunLayout.LOGS)]
    return [json.loads(line) for key in keys for line in store.get(key).decode().splitlines()]


def test_events_are_published_in_order(tmp_path: Path) -> None:
    with RunLog("train", open_store(str(tmp_path))) as log:
        log.event("begin", slide="a b.svs")
        log.progress(1, 2, "slides")
    assert [line["event"] for line in lines(str(tmp_path))] == ["begin", "progress"]


def test_parts_stay_bounded_and_nothing_is_lost(tmp_path: Path) -> None:
    with RunLog("train", open_store(str(tmp_path))) as log:
        for number in range(1203):
            log.event("step", step=number)
    assert sorted(int(str(line["step"])) for line in lines(str(tmp_path))) == list(range(1203))
    assert len(list(open_store(str(tmp_path)).list(RunLayout.LOGS))) >= 3


def test_two_writers_of_one_source_keep_apart(tmp_path: Path) -> None:
    now = [1000.0]
    first = RunLog("train", open_store(str(tmp_path)), clock=lambda: now[0])
    now[0] += 0.5
    second = RunLog("train", open_store(str(tmp_path)), clock=lambda: now[0])
    first.event("a")
    second.event("b")
    first.flush()
    second.flush()
    assert {line["event"] for line in lines(str(tmp_path))} == {"a", "b"}


def test_a_store_that_fails_is_reported_once_and_the_work_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store, "put", broken)
    log = RunLog("train", store)
    for _ in range(3):
        log.event("step")
        log.flush()
    assert capsys.readouterr().err.count("the log cannot be written") == 1


def test_what_could_not_be_written_meanwhile_is_written_once_the_store_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now_s, asked = open_store(str(tmp_path)), [1e9], [0]
    put = store.put

    def away(*_: object, **__: object) -> None:
        asked[0] += 1
        raise OSError("away")

    monkeypatch.setattr(store, "put", away)
    log = RunLog("train", store, clock=lambda: now_s[0])
    for step in range(20):
        now_s[0] += 5
        log.event("step", step=step)
    assert asked[0] == 2, "a store that is away is asked once a minute"
    monkeypatch.setattr(store, "put", put)
    now_s[0] += 60
    log.event("step", step=20)
    (part,) = store.list("logs/train")
    assert [json.loads(line)["step"] for line in store.get(part.key).splitlines()] == list(range(21))
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_read_logs_takes_a_source_and_a_tail(tmp_path: Path) -> None:
    from eosin.config import RunConfig
    from eosin.runs import prepare_run

    uri = str(tmp_path / "run")
    prepare_run(uri, RunConfig())
    for source in ("train", "index-00000"):
        with RunLog(source, open_store(uri)) as log:
            for number in range(3):
                log.event("step", step=number)
    assert len(read_logs(uri)) == 6
    assert [line.fields["step"] for line in read_logs(uri, "train", tail=2)] == [1, 2]


def test_a_name_cannot_break_the_line_nor_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunLog("index").event("slide-not-used", slide="two\nlines \x1b[31m ü肺.svs")
    assert capsys.readouterr().err == "index  slide-not-used · slide two\\nlines \\x1b[31m ü肺.svs\n"


def test_an_index_says_what_a_person_wants_to_know() -> None:
    told = {"num_slides": 1200, "num_ok": 1100, "scan_id": "s", "reasons": {"no-mpp": 100}}
    assert event_text("snapshot", {**told, "snapshot_id": "ab12"}) == (
        "1,100 of 1,200 slides can be used; snapshot ab12"
    )
    assert event_text("shard-scanned", {**told, "shard": 0, "num_shards": 4}) == (
        "shard 0 of 4 (from 0): 1,100 of 1,200 slides can be used"
    )
    progress = {"done": 128, "total": 1200, "unit": "slides", "ok": 120}
    assert event_text("progress", progress) == "128/1200 slides · 120 usable"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (14_000, "14 kB"), (579_400, "579 kB"), (999_600, "1 MB"),
     (1.5e9, "1.5 GB"), (48.9e12, "48.9 TB"), (2e15, "2 PB")],
)  # fmt: skip
def test_a_size_stands_in_the_unit_that_fits(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text


def test_warnings_of_modules_are_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EOSIN_LOG", "json")
    logger = logging.getLogger("eosin")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    show_warnings()
    show_warnings()
    logging.getLogger("eosin.storage.retry").warning("trying again: %s", "x" * 400)
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["source"], event["event"], len(event["detail"])) == ("storage", "warning", 190)
