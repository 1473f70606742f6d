"""Export and loading of teachers: safetensors that plain timm loads, and a card that says what they are."""

import contextlib
import hashlib
from importlib.metadata import version
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from eosin.config import RunConfig
from eosin.errors import EosinError, PermanentError, UserError
from eosin.layout import RANDOM_INIT, IndexLayout, RunLayout
from eosin.models.arch import create_vit, resolved_arch_args
from eosin.models.backbone import Backbone
from eosin.models.network import build_network
from eosin.records import SnapshotManifest, TeacherCard, load_record
from eosin.records.teacher_folder import readme, timm_config
from eosin.storage import NotFound, Store, join_uri, open_store


def make_card(
    config: RunConfig, name: str, step: int | None, vit: Any, *, sha256: str = "",
    snapshot_id: str = "", attribution: tuple[str, ...] = (),
) -> TeacherCard:  # fmt: skip
    """The card of a teacher that the run of `config` trained."""
    args = resolved_arch_args(config.model, config.augment.global_px)
    return TeacherCard(
        name=name,
        step=step,
        arch=config.model.arch,
        arch_args=args,
        img_px=int(args["img_size"]),
        num_features=int(vit.num_features),
        mean=config.augment.mean,
        std=config.augment.std,
        mpp=config.patches.shown_mpp,
        weights_sha256=sha256,
        config_digest=config.digest(),
        snapshot_id=snapshot_id,
        attribution=attribution,
        eosin_version=version("eosin"),
    )


def export_teacher(
    store: Store, name: str, backbone: Backbone, *, config: RunConfig, step: int | None, snapshot_id: str = ""
) -> TeacherCard:
    """Publish `backbone` (less its mask token) under `teachers/NAME/` of the run `store` is open at.

    Weights first, then what plain timm and people read, card last. A teacher that is already whole is left
    as it is and its card returned.
    """
    published = load_record(TeacherCard, store, RunLayout.teacher_card(name))
    if published is not None:
        return published
    weights = save(
        {key: value.detach().cpu().contiguous() for key, value in backbone.vit.state_dict().items()}
    )
    digest = hashlib.sha256(weights).hexdigest()
    card = make_card(config, name, step, backbone.vit, sha256=digest, snapshot_id=snapshot_id,
                     attribution=_attribution(config, snapshot_id))  # fmt: skip
    store.put(RunLayout.teacher_weights(name), weights)
    store.put(RunLayout.teacher_timm_config(name), timm_config(card))
    store.put(RunLayout.teacher_readme(name), readme(card))
    store.put(RunLayout.teacher_card(name), card.to_json())
    return card


def _attribution(config: RunConfig, snapshot_id: str) -> tuple[str, ...]:
    """Whose the slides are; nothing where the index cannot be asked, which must not cost a teacher."""
    with contextlib.suppress(EosinError):
        key = IndexLayout.snapshot_marker(snapshot_id)
        manifest = load_record(SnapshotManifest, open_store(config.index.uri), key) if snapshot_id else None
        return manifest.attribution if manifest is not None else ()
    return ()


def load_teacher(uri: str, name: str) -> tuple[nn.Module, TeacherCard]:
    """An exported teacher as a plain timm model in evaluation mode, float32, on the CPU.

    `uri`: a run (the teacher is `teachers/NAME/` in it) or the folder that holds model.json. The model
    maps images [n, 3, H, W], normalised by the card's mean and std, to features [n, num_features].
    Raises `UserError` where there is no such teacher, `PermanentError` where its bytes are damaged.
    """
    folder = join_uri(uri, RunLayout.teacher(name))
    if not open_store(folder).exists("model.json"):
        folder = uri
    store = open_store(folder)
    card = load_record(TeacherCard, store, "model.json")
    if card is None:
        raise UserError(f"no teacher {name} at {uri}", hint="`eosin status RUN` lists the exported teachers")
    model = create_vit(card.arch, card.arch_args)
    _load_weights(model, card, store)
    return model.eval().requires_grad_(False), card


def random_init(config: RunConfig) -> tuple[nn.Module, TeacherCard]:
    """The baseline every teacher is judged against: the network of this seed before any step.

    Where `model.init` is random it is exactly what training starts from.
    """
    vit = build_network(config).backbone.vit
    weights = save({key: value.contiguous() for key, value in vit.state_dict().items()})
    card = make_card(config, RANDOM_INIT, 0, vit, sha256=hashlib.sha256(weights).hexdigest())
    return vit.eval().requires_grad_(False), card


def _load_weights(model: nn.Module, card: TeacherCard, store: Store) -> None:
    source = join_uri(store.uri, "model.safetensors")
    try:
        weights = store.get("model.safetensors")
    except NotFound:
        raise PermanentError(f"{source} is missing, though its card is there") from None
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise PermanentError(
            f"{source} is not the file its card describes (SHA-256 differs)",
            hint="delete the teacher's folder and run training again: it is exported anew",
        )
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise PermanentError(f"{source} does not fit its card: {str(error).splitlines()[0]}") from error
