"""The whole configuration of a run."""

import hashlib
import json
from typing import Any, Self

from pydantic import Field, model_validator

from eosin.config.augment import AugmentConfig
from eosin.config.base import MAX_SEED, Section
from eosin.config.cluster import ClusterConfig
from eosin.config.evaluate import EvaluateConfig
from eosin.config.index import IndexConfig, SlidesConfig
from eosin.config.model import ModelConfig
from eosin.config.patches import PatchesConfig
from eosin.config.train import TrainConfig

# Sections and keys that steer speed, logging or placement, never the result.
_NOT_IDENTITY: tuple[tuple[str, ...], ...] = (
    ("description",),
    ("cluster",),
    ("index", "allow_fewer_slides"),
    ("index", "num_shards"),
    ("index", "slides_in_flight"),
    ("patches", "decoder_timeout_s"),
    ("patches", "prices"),
    ("patches", "prefetch_batches"),
    ("patches", "tile_cache_bytes"),
    ("patches", "stage_dir"),
    ("patches", "stage_bytes"),
    ("patches", "reader"),
    ("train", "activation_checkpointing"),
    ("train", "collapse"),
    ("train", "compile"),
    ("train", "elastic"),
    ("train", "log_every_steps"),
    ("train", "keep_checkpoints"),
    ("train", "parallel"),
    ("train", "pack"),
    ("train", "peak_tflops"),
    ("train", "snapshot_every_steps"),
    ("train", "tensorboard"),
    ("train", "trackers"),
    ("evaluate", "batch_size"),
)


class RunConfig(Section):
    """The whole configuration of a run; every key has a default."""

    recipe: str = "custom"
    """The recipe this configuration began as."""
    description: str = ""
    """What the recipe is for and what it costs."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of everything drawn: weights, samples, crops, masks. Another seed is another run."""
    slides: SlidesConfig = SlidesConfig()
    """Which slides, and what their headers do not say."""
    index: IndexConfig = IndexConfig()
    """How slides are scanned."""
    patches: PatchesConfig = PatchesConfig()
    """Which patches training sees, how they are read, and which are held out."""
    augment: AugmentConfig = AugmentConfig()
    """The crops that are made of a patch."""
    model: ModelConfig = ModelConfig()
    """The backbone and the projection heads."""
    train: TrainConfig = TrainConfig()
    """The method, its schedules, and how the work is cut up."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Which checkpoints are judged, and by what."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the pods run."""

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        """A crop is at most as large as what it is cut from; a published patch set says its own size."""
        augment, patch_px = self.augment, self.patches.patch_px
        if self.patches.source == "slides" and augment.global_px > patch_px:
            raise ValueError(
                f"augment.global_px {augment.global_px} is larger than patches.patch_px {patch_px}, which it"
                " is cut from: raise patches.patch_px, or lower augment.global_px"
            )
        patch_size = self.model.arch_args.get("patch_size")
        for _, sized in augment.variants():
            for name in ("global_px", "local_px") if augment.num_local else ("global_px",):
                side_px = getattr(sized, name)
                if isinstance(patch_size, int) and patch_size > 0 and side_px % patch_size:
                    raise ValueError(
                        f"augment.{name} {side_px} is not a multiple of the backbone's patch size "
                        f"{patch_size}: {side_px} = {side_px // patch_size} × {patch_size}"
                        f" + {side_px % patch_size}"
                    )
            if augment.num_local and sized.local_px > sized.global_px:
                raise ValueError(
                    f"augment.local_px {sized.local_px} is larger than augment.global_px {sized.global_px}:"
                    " local crops are the smaller ones"
                )
        if augment.mixed_px and self.train.distill is not None:
            raise ValueError(
                "augment.mixed_px is not for train.distill, whose teacher sees one size of crops"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the run's result: the configuration less what only steers speed or placement."""
        tree = self.model_dump(mode="json")
        for path in _NOT_IDENTITY:
            node = tree
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
        return tree

    def digest(self) -> str:
        """SHA-256, hex, of what decides the training, hence of what a checkpoint can be continued with.

        How teachers are judged and which grids are decoded is left out, and so is every key at its
        default: a run goes on under a later eosin that knows more keys.
        """
        tree = self.identity()
        tree["patches"]["sets"] = {}
        chosen = _without_defaults(tree, RunConfig().identity())
        chosen.pop("evaluate", None)
        text = json.dumps(chosen, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def digests(self) -> dict[str, int]:
        """The last step whose state may be gone on from, by the digest it was published with.

        That is the run's own, and those it had before each change of its course (`train.phases`).
        """
        earlier = {}
        if self.train.phases:
            before = self.model_copy(update={"train": self.train.before_last_change()})
            changed_at = self.train.phases[-1].until_step
            earlier = {digest: min(step, changed_at) for digest, step in before.digests().items()}
        return {**earlier, self.digest(): self.train.num_steps}


def _without_defaults(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for key, value in tree.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            inner = _without_defaults(value, default)
            if inner:
                chosen[key] = inner
        elif key not in defaults or value != default:
            chosen[key] = value
    return chosen
