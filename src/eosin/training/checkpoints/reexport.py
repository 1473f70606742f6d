"""Teachers that were deleted after training ended, made again from what the run still has."""

from __future__ import annotations

from eosin.config import RunConfig
from eosin.errors import EosinError, PermanentError
from eosin.layout import RunLayout, model_name, step_of
from eosin.models.export import export_teacher
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.records import TrainingDone
from eosin.runs import has_teacher
from eosin.storage import NotFound, Store, join_uri
from eosin.training.checkpoints.checkpoint import load_part


def export_missing(store: Store, config: RunConfig, done: TrainingDone, log: RunLog) -> list[str]:
    """Export again each teacher of a run that has ended and is not whole any more; their names.

    A teacher is made from the checkpoint of its step, with the same bits. One that has none is named in a
    warning, for others can be judged without it; without the last one there is nothing to show for the
    training: `PermanentError`.
    """
    made, lost = [], []
    for name in done.models:
        if has_teacher(store, name):
            continue
        try:
            _export(store, config, done, name)
        except (NotFound, PermanentError) as error:
            lost.append(name)
            log.event("warning", message=f"teacher {name} is missing and cannot be made again: {_why(error)}")
        else:
            made.append(name)
            log.event("export", step=step_of(name), model=name, reason="it was missing")
    if model_name(done.num_steps) in lost:
        raise _nothing_left(store, model_name(done.num_steps))
    return made


def _export(store: Store, config: RunConfig, done: TrainingDone, name: str) -> None:
    """Raises `NotFound` or `PermanentError` where there is no whole checkpoint of that step."""
    step = step_of(name) or 0
    tensors = load_part(store, step, "teacher", config.digest())
    network = build_network(config)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise PermanentError(f"the checkpoint of step {step} does not fit the network") from error
    # A card without its weights would be taken for a whole export.
    store.delete([RunLayout.teacher_card(name)])
    export_teacher(store, name, network.backbone, config=config, step=step, snapshot_id=done.snapshot_id)


def _why(error: NotFound | EosinError) -> str:
    return f"{error.args[0]} is missing too" if isinstance(error, NotFound) else str(error)


def _nothing_left(store: Store, name: str) -> PermanentError:
    done = join_uri(store.uri, RunLayout.TRAINING_DONE)
    return PermanentError(
        f"teacher {name}, the last of {store.uri}, is missing and so is its checkpoint",
        hint=f"delete {done} and run it again: it trains on from the newest checkpoint that is left",
    )
