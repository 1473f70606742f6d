"""A teacher handed over: a copy of its folder or a Hugging Face repository, with a full model card."""

import tempfile
from pathlib import Path

from eosin.errors import MissingDependency, TransientError, UserError
from eosin.index.snapshot import load_manifest
from eosin.layout import (
    RANDOM_INIT,
    TEACHER_CARD,
    TEACHER_README,
    TEACHER_TIMM_CONFIG,
    TEACHER_WEIGHTS,
    RunLayout,
)
from eosin.records import IndexPin, MetricRecord, TeacherCard, load_record
from eosin.records.teacher_folder import CardContext, readme, timm_config
from eosin.runs import load_run
from eosin.storage import NotFound, Store, open_store

HUB = "hf://"
"""What a repository on the Hugging Face hub begins with: hf://OWNER/NAME."""
_REFUSED = (400, 401, 403, 404, 409, 422)


def hand_over(teacher: str, to: str, *, licence: str = "", private: bool = True) -> list[str]:
    """Put the teacher of a folder into a folder or repository (`hf://OWNER/NAME`); its files' names.

    The README tells of data, recipe and figures where the teacher still lies in its run. `licence`: as the
    hub writes it (cc-by-nc-4.0); `private`: whether a repository that has to be made is. Doing it again
    replaces the files. Raises `UserError` for a folder that holds another teacher, a repository or token that
    the hub refuses; `TransientError` where the hub cannot be reached.
    """
    store = open_store(teacher)
    card = load_record(TeacherCard, store, TEACHER_CARD)
    if card is None:
        raise UserError(f"no teacher at {teacher}: {TEACHER_CARD} is not there")
    try:
        weights = store.get(TEACHER_WEIGHTS)
    except NotFound:
        raise UserError(
            f"{teacher} has no {TEACHER_WEIGHTS}", hint="`eosin train RUN` exports it anew"
        ) from None
    files = {
        TEACHER_WEIGHTS: weights,
        TEACHER_TIMM_CONFIG: timm_config(card),
        TEACHER_README: readme(card, _context(teacher, card, licence)),
        TEACHER_CARD: card.to_json(),
    }
    if to.startswith(HUB):
        _to_hub(files, to.removeprefix(HUB), card, private=private)
    else:
        _to_folder(files, open_store(to), card)
    return list(files)


def _context(teacher: str, card: TeacherCard, licence: str) -> CardContext:
    """What the run around the teacher's folder tells; of a folder that lies alone, nothing."""
    run, inside, _ = teacher.rstrip("/").rpartition(f"/{RunLayout.teacher(card.name).rstrip('/')}")
    if not inside or not (store := open_store(run)).exists(RunLayout.CONFIG):
        return CardContext(licence=licence)
    config = load_run(run, store=store)
    records = (
        load_record(MetricRecord, store, info.key)
        for info in store.list(RunLayout.METRICS)
        if info.key.endswith(".json")
    )
    judged = [record for record in records if record is not None and record.status == "ok"]
    return CardContext(
        licence=licence,
        method=config.train.method,
        recipe=config.recipe or "",
        init=_public(config.model.init),
        data=_data(store, card),
        figures=tuple(record for record in judged if record.model == card.name),
        untrained=tuple(record for record in judged if record.model == RANDOM_INIT),
    )


def _public(init: str) -> str:
    """A name anybody knows; where a bucket lies is nobody's business."""
    known = init == "random" or init.startswith(("timm:", "hf-hub:"))
    return f"`{init}`" if known else "weights of an earlier training"


def _data(store: Store, card: TeacherCard) -> str:
    pin = load_record(IndexPin, store, RunLayout.INDEX_PIN)
    manifest = (
        load_manifest(open_store(pin.index_uri), card.snapshot_id) if pin and card.snapshot_id else None
    )
    if manifest is None:
        return ""
    return f"{manifest.num_ok:,} whole-slide images with {manifest.tissue_mm2:,.0f} mm² of tissue"


def _to_folder(files: dict[str, bytes], store: Store, card: TeacherCard) -> None:
    there = load_record(TeacherCard, store, TEACHER_CARD)
    if there is not None and there.weights_sha256 != card.weights_sha256:
        raise UserError(
            f"{store.uri} holds another teacher, {there.name}",
            hint="name an empty folder, or delete that one",
        )
    # The card last, as in a run: whoever finds it finds the rest.
    for name, data in files.items():
        store.put(name, data)


def _to_hub(files: dict[str, bytes], repository: str, card: TeacherCard, *, private: bool) -> None:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "train") from error
    try:
        with tempfile.TemporaryDirectory(prefix="eosin-export-") as folder:
            for name, data in files.items():
                Path(folder, name).write_bytes(data)
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{card.name} of eosin")
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise UserError(
            f"{HUB}{repository}: {_first_line(error)}", hint="hf://OWNER/NAME, and HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in _REFUSED:
            raise UserError(
                f"the hub refuses {repository} (HTTP {code}): {_first_line(error)}",
                hint="set HF_TOKEN to a token that may write there",
            ) from error
        raise _not_reached(repository, error) from error
    except Exception as error:  # the client's own kinds of having no network differ between versions
        raise _not_reached(repository, error) from error


def _not_reached(repository: str, error: Exception) -> TransientError:
    hint = f"run it again, or `--to` a folder, and upload that: hf upload {repository} FOLDER"
    return TransientError(f"{repository} could not be sent to the hub: {_first_line(error)}", hint=hint)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
