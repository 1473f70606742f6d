"""Configuration of evaluation: which checkpoints are judged, and by what."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, model_validator

from eosin.config.base import Section
from eosin.config.presets import expand_preset
from eosin.config.task import TaskConfig, task_kinds
from eosin.words import repeated

if TYPE_CHECKING:
    AnyTask = TaskConfig
else:
    AnyTask = Annotated[Union[tuple(task_kinds().values())], Field(discriminator="kind")]  # noqa: UP007


def _default_tasks() -> tuple[TaskConfig, ...]:
    return (task_kinds()["unsupervised"].model_validate({"kind": "unsupervised", "name": "heldout"}),)


class EvaluateConfig(Section):
    """Which checkpoints are judged, by what, and beside which others."""

    tasks: tuple[AnyTask, ...] = Field(default_factory=_default_tasks)
    """What every model is judged on."""
    checkpoints: Literal["all", "last"] = "all"
    """all: every exported teacher; last: the newest alone."""
    baselines: tuple[str, ...] = ("random-init",)
    """Judged beside the run's own teachers: random-init, timm:NAME or timm:hf-hub:OWNER/NAME with its
    published weights, timm:ARCH@URI with those of a safetensors file, or the URI of a teacher's folder."""
    img_px: int | None = Field(default=None, ge=1)
    """Side to which images are resized for every model; None: each model's own. A teacher trained on
    crops well inside the patch sees the whole patch at the same scale where this is larger."""
    batch_size: int = Field(default=256, ge=1)
    """Images that go through the backbone at once; no effect on the figures."""
    compare_with: tuple[str, ...] = ()
    """URIs of runs whose figures the report shows beside this run's."""
    num_earlier_runs: int = Field(default=5, ge=0, le=20)
    """So many more, the newest in the same folder that began before this one."""

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, values: Any) -> Any:
        tasks = values.get("tasks") if isinstance(values, dict) else None
        if not isinstance(tasks, list | tuple):
            return values
        return {**values, "tasks": [expand_preset(task) for task in tasks]}

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if twice := repeated([task.name for task in self.tasks]):
            raise ValueError(f"two tasks share a name: {twice}")
        return self
