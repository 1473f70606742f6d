"""Judged model: an exported teacher of this run or another, the network untrained, or a model from timm."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import RANDOM_INIT, TEACHER_CARD, RunLayout, record_key, step_of
from eosin.records import TeacherCard, load_record
from eosin.runs import exported_models
from eosin.storage import NotFound, Store, open_store
from eosin.words import nearest_of

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
LAST = "last"
"""The read-out of a network's own output."""


@dataclass(frozen=True)
class JudgedModel:
    """A model before its weights are read. `load()` gives the module in eval mode and its card."""

    name: str
    step: int | None
    digest: str
    """SHA-256 of all that decides its embeddings."""
    load: "Callable[[], tuple[nn.Module, TeacherCard]]"
    trained_by: str = ""
    """URI of the run that trained it, where one is known: its slides are what the model has seen."""
    weights_sha256: str = ""
    """Of a teacher: the file of weights that its card names."""
    read_out: str = LAST
    """Which of its features are taken, as `TaskConfig.read_out`."""

    @property
    def key(self) -> str:
        """The name as part of an object key: `timm:a/b` must not open a folder of its own."""
        return record_key(self.name)

    def reading(self, read_out: str) -> "JudgedModel":
        """The same model by its features `read_out`, which are part of its digest."""
        if read_out == LAST:
            return self
        digest = _digest({"model": self.digest, "read_out": read_out})
        return replace(self, digest=digest, read_out=read_out)


def find_model(run_uri: str, config: RunConfig, name: str, store: Store) -> JudgedModel:
    """The model called `name`. Raises `UserError` naming what is there where it is not exported."""
    model = _find(run_uri, config, name, store)
    return model if config.evaluate.img_px is None else _at_size(model, config.evaluate.img_px)


def missing_model(name: str, error: UserError) -> JudgedModel:
    """A model that cannot be had: loading it raises `error`."""

    def load() -> "tuple[nn.Module, TeacherCard]":
        raise error

    return JudgedModel(name, None, _digest({"missing": name}), load)


def _at_size(model: JudgedModel, img_px: int) -> JudgedModel:
    def load() -> "tuple[nn.Module, TeacherCard]":
        module, card = model.load()
        return module, card.model_copy(update={"img_px": img_px})

    return replace(model, digest=_digest({"model": model.digest, "img_px": img_px}), load=load)


def _find(run_uri: str, config: RunConfig, name: str, store: Store) -> JudgedModel:
    if name == RANDOM_INIT:
        return _random_init(config)
    if name.startswith(TIMM):
        return _from_timm(name)
    if "/" in name:
        return _foreign_teacher(name)
    card = load_record(TeacherCard, store, RunLayout.teacher_card(name))
    if card is None:
        hint = nearest_of(name, exported_models(store), none="none yet")
        raise UserError(f"run {run_uri} has no model {name}", hint=hint)
    return _teacher(name, step_of(name), card, run_uri, run_uri)


_IDENTITY = {"arch", "arch_args", "img_px", "num_features", "mean", "std", "weights_sha256"}


def _foreign_teacher(folder: str) -> JudgedModel:
    """A teacher that lies anywhere: its name is the URI of the folder that holds model.json."""
    card = load_record(TeacherCard, open_store(folder), TEACHER_CARD)
    if card is None:
        raise UserError(
            f"no teacher at {folder}: {TEACHER_CARD} is not there",
            hint="name the folder of an export, s3://bucket/runs/NAME/teachers/step-00000100",
        )
    # No step: it is not one of this run's, whatever its own run called it.
    run, _, inside = folder.rpartition("/" + RunLayout.TEACHERS)
    return _teacher(folder, None, card, folder, run if inside else "")


def _teacher(name: str, step: int | None, card: TeacherCard, uri: str, trained_by: str) -> JudgedModel:
    def load() -> "tuple[nn.Module, TeacherCard]":
        from eosin.models.export import load_teacher

        return load_teacher(uri, card.name)

    digest = _digest(card.model_dump(mode="json", include=_IDENTITY))
    return JudgedModel(name, step, digest, load, trained_by, card.weights_sha256)


def _random_init(config: RunConfig) -> JudgedModel:
    def load() -> "tuple[nn.Module, TeacherCard]":
        from eosin.models.export import random_init

        return random_init(config)

    identity = {
        "random-init": config.model.model_dump(mode="json"),
        "seed": config.seed,
        "img_px": config.augment.global_px,
        "mean": config.augment.mean,
        "std": config.augment.std,
    }
    return JudgedModel(RANDOM_INIT, 0, _digest(identity), load)


def _from_timm(name: str) -> JudgedModel:
    arch, _, uri = name.removeprefix(TIMM).partition("@")
    if uri:
        return _from_file(name, arch, uri)
    identity = {"timm": name, "version": importlib.metadata.version("timm")}

    def load() -> "tuple[nn.Module, TeacherCard]":
        from eosin.models.timm_model import load_timm

        return load_timm(name.removeprefix(TIMM))

    return JudgedModel(name, None, _digest(identity), load)


def _from_file(name: str, arch: str, uri: str) -> JudgedModel:
    """timm's architecture with the weights of a safetensors file: told apart by etag, not by reading it."""
    folder, _, key = uri.rpartition("/")
    try:
        info = open_store(folder or ".").head(key)
    except NotFound:
        raise UserError(
            f"no weights at {uri}", hint="a baseline may be timm:ARCH@URI of a safetensors file"
        ) from None
    identity = {"timm": arch, "uri": uri, "etag": info.etag, "version": importlib.metadata.version("timm")}

    def load() -> "tuple[nn.Module, TeacherCard]":
        from eosin.models.timm_model import load_timm_file

        return load_timm_file(arch, uri)

    return JudgedModel(name, None, _digest(identity), load)


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
