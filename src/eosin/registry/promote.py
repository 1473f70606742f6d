"""Promotion: a run's teacher becomes the current model of a name, where it has earned it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import RegisteredModel, RegistryEntry, TeacherCard, TrainingDone, load_record
from eosin.registry.compare import Judgement, Rule, compare
from eosin.registry.entries import added, change_entry, moved
from eosin.runs import load_pin, load_run
from eosin.storage import Store, join_uri, open_store

_NO_VERSION = 0


@dataclass(frozen=True)
class Promotion:
    """What came of it. `version` is the current one now; `why` is for a person, a line a reason."""

    name: str
    status: Literal["promoted", "refused", "unchanged"]
    version: int
    teacher: str
    why: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()

    def __str__(self) -> str:
        head = f"{self.name}: {self.status}, version {self.version} is the current one"
        return "\n".join([head, f"  candidate {self.teacher}", *(f"  {why}" for why in self.why)])


def promote(
    registry_uri: str, name: str, run_uri: str, *, model: str = "", rule: Rule | None = None, log: RunLog
) -> Promotion:
    """Make the teacher `model` of a run (empty: its newest) the current model `name`.

    Where there is none yet it becomes the first; otherwise it must beat the current one by `rule`, on
    records that the run holds of both. Where another promotion is faster, it must beat that one.
    Repeated after success it changes nothing. Raises `UserError` where the run has no such teacher.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    promoter = _Promoter(store, config, name, _candidate(store, model), rule or Rule())
    standing = change_entry(registry_uri, name, promoter.change)
    assert standing is not None and promoter.result is not None
    result = promoter.result
    log.event(
        "promotion", name=name, status=result.status, version=result.version, teacher=result.teacher,
        why="; ".join(result.why),
    )  # fmt: skip
    return result


@dataclass
class _Promoter:
    store: Store
    config: RunConfig
    name: str
    candidate: RegisteredModel
    rule: Rule
    result: Promotion | None = None
    """Of the last call of `change`."""

    def change(self, entry: RegistryEntry | None) -> RegistryEntry | None:
        """The entry with the candidate as its current model; None where it stays as it is."""
        if entry is None:
            first = ("the first model of this name",)
            changed = added(None, self.name, self.candidate, first)
            self.result = self._result("promoted", changed.current, first)
            return changed
        current = entry.current_model
        if current.weights_sha256 == self.candidate.weights_sha256:
            same = (f"it is version {entry.current}, the current one",)
            self.result = self._result("unchanged", entry.current, same)
            return None
        judgements = compare(
            self.store, self.config, self.candidate.model, self._names_of(current), self.rule
        )
        why = tuple(each.why for each in judgements)
        if not all(each.passed for each in judgements):
            failed = tuple(each.why for each in judgements if not each.passed)
            self.result = self._result("refused", entry.current, failed, judgements)
            return None
        changed = self._with_candidate(entry, why)
        self.result = self._result("promoted", changed.current, why, judgements)
        return changed

    def _names_of(self, current: RegisteredModel) -> list[str]:
        """Under which the run may hold records of the current model: as a stranger's, or as its own."""
        return [current.teacher, *([current.model] if current.run == self.candidate.run else [])]

    def _with_candidate(self, entry: RegistryEntry, why: tuple[str, ...]) -> RegistryEntry:
        for old in entry.versions:
            if old.weights_sha256 == self.candidate.weights_sha256:
                return moved(entry, "promote", old.version, why)
        return added(entry, self.name, self.candidate, why)

    def _result(
        self,
        status: Literal["promoted", "refused", "unchanged"],
        version: int,
        why: tuple[str, ...],
        judgements: tuple[Judgement, ...] = (),
    ) -> Promotion:
        return Promotion(self.name, status, version, self.candidate.teacher, why, judgements)


def _candidate(store: Store, model: str) -> RegisteredModel:
    model = model or _newest(store)
    card = load_record(TeacherCard, store, RunLayout.teacher_card(model))
    if card is None:
        raise UserError(
            f"run {store.uri} has no teacher {model}", hint=f"`eosin status {store.uri}` shows how far it is"
        )
    pin = load_pin(store.uri, store=store)
    return RegisteredModel(
        version=_NO_VERSION,
        run=store.uri,
        model=model,
        teacher=join_uri(store.uri, RunLayout.teacher(model)).rstrip("/"),
        weights_sha256=card.weights_sha256,
        index_uri=pin.index_uri,
        snapshot_id=card.snapshot_id or pin.snapshot_id,
    )


def _newest(store: Store) -> str:
    done = load_record(TrainingDone, store, RunLayout.TRAINING_DONE)
    if done is None:
        raise UserError(
            f"run {store.uri} has not ended training",
            hint="name the teacher to promote: --model step-00000100",
        )
    return done.models[-1]
