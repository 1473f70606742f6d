"""Events of a training that was interrupted, replayed, and cut short."""

import json
from pathlib import Path
from typing import Any

import pytest

from eosin.config import RunConfig
from eosin.config.augment import AugmentConfig
from eosin.config.model import ModelConfig
from eosin.config.train import OptimizerConfig, TrainConfig
from eosin.layout import RunLayout
from eosin.storage import open_store
from eosin.summary.html import course, training_charts
from eosin.summary.training_log import Event, read_events, read_training_log, training_health


def _event(seconds: float, name: str, /, source: str = "train-00000", **fields: Any) -> Event:
    return Event(seconds, source, name, fields)


def _step(seconds: float, step: int, loss: float, **fields: Any) -> Event:
    return _event(seconds, "step", step=step, loss=loss, **fields)


def test_the_newest_word_on_a_step_counts() -> None:
    events = [
        _step(0, 10, 5.0),
        _step(60, 20, 4.0),
        _step(120, 10, 5.5),
        _step(180, 20, 4.5),
        _step(240, 30, 3.0),
    ]
    log = read_training_log(events)
    assert log is not None
    assert log.terms["loss"] == [(10.0, 5.5), (20.0, 4.5), (30.0, 3.0)]
    assert log.num_replayed == 2


def test_terms_are_whatever_the_loss_has() -> None:
    log = read_training_log(
        [_step(0, 1, 3.0, dino=2.0, kde=0.5, lr=1e-3, world_size=2, note="x", finite=True)]
    )
    assert log is not None
    assert list(log.terms) == ["loss", "dino", "kde"]
    assert log.lr == [(1.0, 1e-3)]


def test_time_counts_from_the_first_step() -> None:
    events = [
        _event(40, "world", world_size=2),
        _step(100, 1, 3.0, world_size=2, patches_per_s=50.0),
        _event(130, "node-lost", source="launch", node="b"),
        _step(160, 2, 3.0, world_size=1, patches_per_s=25.0),
        _event(170, "progress", done=1, total=2),
        _event(180, "world", source="decode-00000"),
    ]
    log = read_training_log(events)
    assert log is not None
    assert log.machine["world_size"] == [(0.0, 2.0), (1.0, 1.0)]
    assert [(event.minutes, event.name) for event in log.world_events] == [
        (0.0, "world"),
        (0.5, "node-lost"),
    ]


def test_without_a_step_there_is_no_training_log() -> None:
    assert read_training_log([]) is None
    assert read_training_log([_event(0, "step", step="three", loss=None)]) is None


def test_many_events_are_cut_and_counted() -> None:
    events = [_step(0, 1, 3.0), *(_event(i, "restart", attempt=i) for i in range(100))]
    log = read_training_log(events)
    assert log is not None
    assert (len(log.world_events), log.num_more_events) == (60, 40)
    assert log.world_events[-1].text == "attempt 99"


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    good = json.dumps({"time": "2026-01-01T00:00:01+00:00", "source": "train", "event": "step", "step": 1})
    earlier = json.dumps({"time": "2026-01-01T00:00:00+00:00", "source": "index", "event": "done"})
    bad = [
        "",
        "[]",
        "{}",
        '{"time": 5}',
        '{"time": "yesterday", "source": "a", "event": "b"}',
        good[:30],
        "\x00\xff",
    ]
    store = open_store(str(tmp_path))
    store.put(RunLayout.log("train", "1"), "\n".join([*bad, good]).encode("utf-8", "surrogateescape"))
    store.put(RunLayout.log("index", "2"), (earlier + "\n").encode())
    assert [(event.source, event.name) for event in read_events(store)] == [
        ("index", "done"),
        ("train", "step"),
    ]


def test_signals_of_collapse_are_charts_of_their_own_and_no_terms_of_the_loss() -> None:
    signals = {"rankme": 3.0, "teacher_entropy": 5.0, "feature_center_norm": 0.2, "mfu": 0.4}
    log = read_training_log([_step(t, t + 1, 3.0, **signals) for t in range(3)])
    assert log is not None
    assert list(log.terms) == ["loss"]
    main, more = training_charts(log)
    assert [chart.title for chart in main] == [
        "Loss",
        "RankMe of the teacher's features",
        "Entropy of the teacher's assignments",
    ]
    assert [chart.title for chart in more] == ["Length of the mean feature", "Model FLOP utilisation"]


def test_the_course_of_a_training_is_marked_where_it_has_come_to() -> None:
    earlier = {"until_step": 4, "num_steps": 10, "momentum": 0.99, "lr": 1e-4, "min_lr": 0.0,
               "warmup_steps": 2, "weight_decay_end": 0.2}  # fmt: skip
    gram = {"weight": 1.0, "start_step": 6, "refresh_every_steps": 3, "max_refreshes": 1}
    train = TrainConfig.model_validate(
        {"num_steps": 20, "phases": [earlier], "gram": gram, "optimizer": {"warmup_steps": 3}}
    )
    course = [
        ("change of course", 4),
        ("Gram teacher", 6),
        ("end of warm-up", 7),
        ("Gram teacher", 9),
    ]
    assert train.milestones() == course
    log = read_training_log([_step(t, t + 1, 3.0, mfu=0.4) for t in range(7)])
    assert log is not None
    main, more = training_charts(log, course)
    assert main[0].marks == (
        ("change of course, step 4", 4.0), ("Gram teacher, step 6", 6.0), ("end of warm-up, step 7", 7.0),
    )  # fmt: skip
    assert more[-1].marks == (), "minutes are no steps"


def test_a_run_at_another_resolution_says_what_it_goes_on_from() -> None:
    first = RunConfig()
    assert course(first) == first.train.milestones()
    highres = first.model_copy(update={
        "model": ModelConfig(init="run:s3://bucket/runs/vitg14-dinov2"),
        "augment": AugmentConfig(global_px=392),
        "train": TrainConfig(optimizer=OptimizerConfig(warmup_steps=3000)),
    })  # fmt: skip
    text = "goes on from vitg14-dinov2 with crops of 392 px"
    assert course(highres) == [(text, 0), ("end of warm-up", 3000)]
    log = read_training_log([_step(t, t + 1, 3.0) for t in range(3)])
    assert log is not None
    assert training_charts(log, course(highres))[0][0].marks == ((f"{text}, step 0", 0.0),)


def test_a_chart_of_one_point_is_not_drawn() -> None:
    log = read_training_log([_step(0, 1, 3.0, rankme=3.0)])
    assert log is not None and training_charts(log) == ([], [])


@pytest.mark.parametrize(
    ("signals", "went_well", "words"),
    [
        ([{"rankme": 3.0 + t, "teacher_entropy": 4.0} for t in range(20)], True,
         "went well: the loss fell from 9.25 to 0.25, RankMe rose from 3.5 to 21.5, "
         "the teacher's entropy ended at 4.00 of 5.55 nats, nothing was restarted"),
        ([{"teacher_entropy": 4 / (t + 1) ** 2} for t in range(20)], False, "images go to few prototypes"),
        ([{"teacher_entropy": 5.545}] * 20, False, "images go to all prototypes alike"),
        ([{"rankme": 20.0 - t} for t in range(20)], False, "RankMe fell from 19.5 to 1.5, 20 at best"),
        ([{"data_wait_share": 0.4}] * 20, False, "40 % of the time went to waiting for patches"),
        ([{}] * 19 + [{"loss": float("nan")}], False, "the loss is not finite"),
    ],
)  # fmt: skip
def test_a_sentence_says_whether_training_went_well(
    signals: list[dict[str, float]], went_well: bool, words: str
) -> None:
    events = [
        _event(t, "step", **{"step": t + 1, "loss": (19 - t) / 2, **each}) for t, each in enumerate(signals)
    ]
    log = read_training_log(events)
    assert log is not None
    health = training_health(log, num_prototypes=256, has_ended=True)
    assert health.went_well == went_well and words in health.sentence
    assert ("needs a look" in health.sentence) != went_well
