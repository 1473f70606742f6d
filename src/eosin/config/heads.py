"""Hyperparameters of the heads that tasks train on frozen features: eva's unless changed."""

from typing import Annotated, Literal

from pydantic import Field

from eosin.config.base import Section


class ProbeConfig(Section):
    """The linear head: eva's protocol unless changed (docs/how-to/evaluate.md has the source)."""

    num_steps: int = Field(default=12_500, ge=1)
    """Steps of AdamW a run, at most."""
    batch_size: int = Field(default=256, ge=1)
    """Images a step."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate of AdamW after the first epochs."""
    low_lr_epochs: int = Field(default=5, ge=0)
    """First epochs at a third of it, as torch's ConstantLR, which eva takes where none is set."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    num_runs: int = Field(default=5, ge=1)
    """Heads trained, each from a seed of its own; figures are their mean."""
    patience_epochs: int | None = Field(default=None, ge=1)
    """Stop a run after so many epochs without a better validation score; None: never."""
    validate_every_epochs: int = Field(default=1, ge=1)
    """Look at validation after so many whole epochs."""
    num_shots: int | None = Field(default=None, ge=1)
    """Train on so many images of each class, drawn anew for each run; None: on all of them."""


class DecoderConfig(Section):
    """The decoder of a segmentation task: steps, batch, LR and runs are eva's unless changed."""

    name: Literal["conv-decoder", "eva-with-image", "eva-multi-stage"] = "conv-decoder"
    """eva's ConvDecoderWithImage or ConvDecoderMS, trained and judged as eva does; or our own."""
    num_steps: int = Field(default=2_000, ge=1)
    """Steps of AdamW a run."""
    batch_size: int = Field(default=64, ge=1)
    """Tiles a step."""
    lr: float = Field(default=2e-3, gt=0)
    """Learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    num_runs: int = Field(default=5, ge=1)
    """Decoders trained, each from a seed of its own; figures are their mean."""
    low_lr_epochs: int = Field(default=0, ge=0)
    """First epochs at a third of it, as in `probe`; eva: 5."""
    patience_epochs: int | None = Field(default=None, ge=1)
    """Stop a run after so many looks at validation without a better score; None: never."""
    hidden_dim: int = Field(default=64, ge=8, multiple_of=8)
    """Of conv-decoder: channels after the first layer; half as many after the last."""
    num_validations: int = Field(default=20, ge=1)
    """Of conv-decoder: how often a run is judged on validation; eva's are after each epoch."""

    @property
    def is_eva(self) -> bool:
        """Whether it is one of kaiko-eva's decoders."""
        return self.name != "conv-decoder"


class AbmilConfig(Section):
    """Gated attention over the patches of a slide: eva's sizes and steps unless changed."""

    num_epochs: int = Field(default=100, ge=1)
    """Epochs a run, at most."""
    batch_size: int = Field(default=32, ge=1)
    """Slides a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW after the first epochs."""
    low_lr_epochs: int = Field(default=5, ge=0)
    """First epochs at a third of it, as in `probe`."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    num_runs: int = Field(default=20, ge=1)
    """Heads trained, each from a seed of its own; figures are their mean."""
    patience_epochs: int | None = Field(default=20, ge=1)
    """Stop a run after so many epochs without a better validation score; None: never."""
    projection_dim: int = Field(default=128, ge=1)
    """Width to which features are projected first."""
    attention_dim: int = Field(default=128, ge=1)
    """Width of the gated attention."""
    hidden_dims: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64)
    """Widths of the hidden layers after the attention."""
    max_step_gib: float = Field(default=2.0, gt=0)
    """Most memory for the patches of one step; more seeds than fit are trained after one another."""
