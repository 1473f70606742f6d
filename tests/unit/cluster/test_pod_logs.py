"""Mirrored pod logs: whole parts, no line twice, the same objects from a second launcher."""

import json
from pathlib import Path

import pytest

from eosin.cluster.pod_logs import LINES_PER_PART, PodLog, part_name
from eosin.storage import Store, open_store


def stamp(second: int, fraction: str = "") -> str:
    return f"2026-03-01T00:{second // 60:02d}:{second % 60:02d}{fraction}Z"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}")


def texts(store: Store) -> list[str]:
    return [
        json.loads(line)["text"] for info in store.list("logs/") for line in store.get(info.key).splitlines()
    ]


def test_second_launcher_writes_the_same_objects(store: Store) -> None:
    lines = [f"{stamp(i)} line {i}" for i in range(LINES_PER_PART + 3)]
    for _ in range(2):
        log = PodLog("pod-1", store)
        for line in lines:
            log.add(line)
        log.flush()
    assert texts(store) == [f"line {i}" for i in range(LINES_PER_PART + 3)]
    assert len(list(store.list("logs/"))) == 2


def test_reconnected_stream_repeats_nothing(store: Store) -> None:
    log = PodLog("pod-1", store)
    taken = [log.add(f"{stamp(i)} line {i}") for i in (1, 2, 3, 2, 3, 4)]
    log.flush()
    assert taken == [True, True, True, False, False, True]
    assert texts(store) == ["line 1", "line 2", "line 3", "line 4"]


def test_two_equal_lines_at_different_times_are_two(store: Store) -> None:
    log = PodLog("pod-1", store)
    assert log.add(f"{stamp(1, '.5')} same")
    assert log.add(f"{stamp(1, '.55')} same")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000001Z"),
        ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.55Z"),
        ("2026-01-01T09:59:59.999999999-05:00", "2026-01-01T10:00:00-05:00"),
    ],
)
def test_names_sort_as_time_does(earlier: str, later: str) -> None:
    assert part_name(earlier) < part_name(later)


def test_empty_line_and_line_without_a_timestamp_are_kept(store: Store) -> None:
    log = PodLog("pod-1", store)
    assert log.add(f"{stamp(1)} ")
    assert log.add("nonsense")
    log.flush()
    assert texts(store) == ["", ""]
