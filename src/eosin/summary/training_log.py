"""Log of training: losses by step, speed and world size by time, and each elastic event."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eosin.layout import RunLayout
from eosin.observability import short_text
from eosin.storage import Store

# The report must not depend on how often it was written.
_OWN_LOG = "summarize"


@dataclass(frozen=True)
class Event:
    """One line. `time_s`: seconds since 1970."""

    time_s: float
    source: str
    name: str
    fields: dict[str, Any]

    def number(self, name: str) -> float | None:
        """A numeric field; None where it is absent or not a number."""
        value = self.fields.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def date_of(time_s: float) -> str:
    """ISO date and time in UTC, to the second."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def read_events(store: Store) -> tuple[Event, ...]:
    """Every event of the run by time; a line that is not one (cut by a kill) is passed over."""
    keys = [info.key for info in store.list(RunLayout.LOGS) if info.key.endswith(".jsonl")]
    wanted = [key for key in keys if not key.startswith(RunLayout.logs(_OWN_LOG))]
    events = [event for key in wanted for event in _parse(store.get(key).splitlines())]
    return tuple(sorted(events, key=lambda event: event.time_s))


def _parse(lines: Iterable[bytes]) -> Iterable[Event]:
    for line in lines:
        try:
            fields = json.loads(line)
            time_s = datetime.fromisoformat(fields.pop("time")).timestamp()
            yield Event(time_s, str(fields.pop("source")), str(fields.pop("event")), fields)
        except (ValueError, KeyError, AttributeError, TypeError):
            continue


Points = list[tuple[float, float]]

# Numeric fields of a step event that are no terms of the loss.
# What a step says of its health, by step, and of the machine, by time; each in the order of the report.
HEALTH = (
    "rankme", "teacher_entropy", "feature_center_norm", "center_norm", "patch_locality", "patch_class_cosine",
    "grad_norm",
)  # fmt: skip
MACHINE = ("patches_per_s", "mfu", "data_wait_share", "memory_gib", "checkpoint_age_s", "world_size")
_NOT_TERMS = {*HEALTH, *MACHINE, "step", "num_steps", "loss", "lr", "images_per_s", "eta_s"}
_ROUTINE = {"step", "speed", "progress", "checkpoint", "export", "init", "plan", "patch-redrawn"}
_SOURCES = ("train", "launch")
_MAX_EVENTS = 60


@dataclass(frozen=True)
class WorldEvent:
    """Something that happened to the workers, `minutes` after the first step (0: before it)."""

    minutes: float
    name: str
    text: str


@dataclass(frozen=True)
class TrainingLog:
    """What the log of training says, as series to draw."""

    terms: dict[str, Points]
    """Loss and its terms by step."""
    lr: Points
    health: dict[str, Points]
    """Signals of collapse and the gradient's norm, by step."""
    machine: dict[str, Points]
    """Speed, utilisation, waiting, memory and world size, by minutes since the first step event."""
    world_events: tuple[WorldEvent, ...]
    num_more_events: int
    num_checkpoints: int
    num_redrawn: int
    """Patches that could not be read and were drawn again."""
    num_restarts: int
    """Worlds after the first."""
    device: str
    """What the workers ran on: cuda or cpu; empty where it was not logged."""
    num_replayed: int
    """Step events that a later attempt reported again."""
    data_wait_share: float | None
    """Mean share of the time in which steps waited for patches."""


def read_training_log(events: Sequence[Event]) -> TrainingLog | None:
    """None where training has not logged a step."""
    steps = [event for event in events if event.name == "step" and event.number("step") is not None
             and event.number("loss") is not None]  # fmt: skip
    if not steps:
        return None
    began_s = steps[0].time_s
    final = {int(event.fields["step"]): event for event in steps}
    # A restart replays steps after the last checkpoint; the newest word on a step counts.
    ordered = [final[step] for step in sorted(final)]
    told = (e for e in events if e.source.split("-")[0] in _SOURCES and e.name not in _ROUTINE)
    world = [_world_event(event, began_s) for event in told]
    waits = [value for event in ordered if (value := event.number("data_wait_share")) is not None]
    return TrainingLog(
        terms={name: _by_step(ordered, name) for name in _terms(ordered)},
        lr=_by_step(ordered, "lr"),
        health={name: _by_step(ordered, name) for name in HEALTH},
        machine={name: _by_time(steps, name, began_s) for name in MACHINE},
        world_events=tuple(world[-_MAX_EVENTS:]),
        num_more_events=max(0, len(world) - _MAX_EVENTS),
        num_checkpoints=sum(event.name == "checkpoint" for event in events),
        num_redrawn=max(
            (int(n) for e in events if e.name == "patch-redrawn" and (n := e.number("count"))), default=0
        ),
        num_restarts=max(0, sum(event.name == "world" for event in events) - 1),
        device=next(
            (str(e.fields["device"]) for e in events if e.name == "world" and "device" in e.fields), ""
        ),
        num_replayed=len(steps) - len(ordered),
        data_wait_share=sum(waits) / len(waits) if waits else None,
    )


def _terms(steps: Sequence[Event]) -> list[str]:
    names = {name for event in steps for name in event.fields if event.number(name) is not None}
    return ["loss", *sorted(names - _NOT_TERMS)]


def _by_step(steps: Sequence[Event], name: str) -> Points:
    return [
        (float(event.fields["step"]), value) for event in steps if (value := event.number(name)) is not None
    ]


def _by_time(steps: Sequence[Event], name: str, began_s: float) -> Points:
    return [
        ((event.time_s - began_s) / 60, value) for event in steps if (value := event.number(name)) is not None
    ]


def _world_event(event: Event, began_s: float) -> WorldEvent:
    text = " · ".join(f"{name} {short_text(value)}" for name, value in event.fields.items())
    return WorldEvent(max(0.0, event.time_s - began_s) / 60, event.name, text)


_COLLAPSED_ENTROPY, _UNIFORM_ENTROPY = 0.05, 0.999
_MUCH_WAITING = 0.1
_LOST_RANK = 0.5


@dataclass(frozen=True)
class Health:
    """Whether training went well, from its log."""

    went_well: bool
    sentence: str


def training_health(log: TrainingLog, *, num_prototypes: int, has_ended: bool) -> Health:
    """Told from the loss, RankMe, the teacher's entropy over `num_prototypes`, waiting and restarts.

    A collapse is an entropy at one of its ends, or a RankMe of less than half of its best. The loss alone
    says little: with sharpened targets it may stay near the logarithm of the number of prototypes.
    """
    bad, facts = [], []
    loss = [value for _, value in log.terms["loss"]]
    if all(map(math.isfinite, loss)):
        facts.append(f"the loss {_moved(loss)}")
    else:
        bad.append("the loss is not finite")
    ranks = [value for _, value in log.health["rankme"]]
    if len(ranks) > 1:
        lost = ranks[-1] < _LOST_RANK * max(ranks)
        (bad if lost else facts).append(
            f"RankMe {_moved(ranks)}" + (f", {max(ranks):.3g} at best" if lost else "")
        )
    entropies, most = [value for _, value in log.health["teacher_entropy"]], math.log(num_prototypes)
    if entropies:
        share, told = (
            entropies[-1] / most,
            f"the teacher's entropy ended at {entropies[-1]:.2f} of {most:.2f} nats",
        )
        if share < _COLLAPSED_ENTROPY:
            bad.append(f"{told}: all images go to few prototypes")
        elif share > _UNIFORM_ENTROPY and len(entropies) > 1:
            bad.append(f"{told}: images go to all prototypes alike")
        else:
            facts.append(told)
    if log.data_wait_share is not None:
        waited = f"{100 * log.data_wait_share:.0f} % of the time went to waiting for patches"
        (bad if round(log.data_wait_share, 2) > _MUCH_WAITING else facts).append(waited)
    facts.append(_restarts(log))
    words = "went well" if not bad else f"needs a look: {'; '.join(bad)}"
    rest = f"{'; ' if bad else ': '}{', '.join(facts)}"
    return Health(not bad, f"Training {words if has_ended else f'has not ended and {words}'}{rest}.")


def _restarts(log: TrainingLog) -> str:
    if not log.num_restarts:
        return "nothing was restarted"
    times = "once" if log.num_restarts == 1 else f"{log.num_restarts} times"
    replayed = f" ({log.num_replayed} logged steps again)" if log.num_replayed else ""
    return f"its workers began anew {times}{replayed}"


def _moved(values: Sequence[float]) -> str:
    """From the mean of the first tenth to that of the last."""
    part = max(1, len(values) // 10)
    before, after = sum(values[:part]) / part, sum(values[-part:]) / part
    change = after - before
    word = "stayed" if abs(change) < 0.01 * max(abs(before), abs(after)) else "rose" if change > 0 else "fell"
    return f"stayed at {after:.3g}" if word == "stayed" else f"{word} from {before:.3g} to {after:.3g}"
