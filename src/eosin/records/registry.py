"""Entry of a model in the registry: which teacher is the current one, and every one before it."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from eosin.records.base import Record, RecordPart


class RegisteredModel(RecordPart):
    """One version: a teacher and where it came from. Never changed once it is in an entry."""

    version: int
    """From 1 on, without gaps."""
    run: str
    """URI of the run that trained it."""
    model: str
    """Its name in that run, step-00000100."""
    teacher: str
    """URI of the folder with model.json and model.safetensors."""
    weights_sha256: str
    """Of model.safetensors."""
    index_uri: str
    """The index it was trained on."""
    snapshot_id: str
    """The snapshot of `index_uri` that it was trained on."""


class RegistryMove(RecordPart):
    """The pointer moved to `version`."""

    time: str
    """ISO 8601, UTC."""
    action: Literal["promote", "rollback"]
    """promote: a new version won; rollback: an earlier one was taken back."""
    version: int
    """The version that became the current one."""
    why: tuple[str, ...] = ()
    """What the judgement said, a line a metric, or a person's reason."""


class RegistryEntry(Record):
    """One object a model name, replaced whole by a conditional put: the pointer and its history."""

    # Nothing writes it again: what is in it is known nowhere else.
    unreadable_hint: ClassVar[str] = "restore an earlier version of {source}"

    name: str
    """Of the model."""
    current: int
    """Number of the current version."""
    versions: tuple[RegisteredModel, ...]
    """Every version, from 1 on."""
    history: tuple[RegistryMove, ...]
    """Oldest first; the last one led to `current`."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        numbers = [each.version for each in self.versions]
        if numbers != list(range(1, len(numbers) + 1)) or self.current not in numbers:
            raise ValueError(f"current version {self.current} with versions {numbers}")
        return self

    def __str__(self) -> str:
        lines = [f"{self.name}: version {self.current}, {self.current_model.teacher}"]
        for move in self.history:
            model = self.versions[move.version - 1]
            lines.append(f"  {move.time}  {move.action:<8}  version {move.version}  {model.teacher}")
            lines += [f"      {why}" for why in move.why]
        return "\n".join(lines)

    @property
    def current_model(self) -> RegisteredModel:
        """The version that `current` names."""
        return self.versions[self.current - 1]
