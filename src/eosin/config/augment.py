"""Multi-crop views of a patch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from eosin.config.base import Rising, Section, Share

_Area = Annotated[float, Field(ge=1e-4, le=1)]
_Spread = Annotated[float, Field(ge=0.01, le=1)]
Scale = Annotated[tuple[_Area, _Area], Rising]


class CropSizes(Section):
    """Sides of the crops of some steps, in place of `augment.global_px` and `local_px`."""

    global_px: int = Field(gt=0)
    """Side of the two global crops, px."""
    local_px: int = Field(gt=0)
    """Side of the local crops, px."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Share of the steps, in proportion to the other pairs."""


class AugmentConfig(Section):
    """The crops that are made of a patch; lengths in pixels, shares and probabilities from 0 to 1."""

    global_px: int = Field(default=224, gt=0)
    """Side of the two global crops after resizing, px; a multiple of the backbone's patch size."""
    local_px: int = Field(default=96, gt=0)
    """Side of the local crops after resizing, px; a multiple of the backbone's patch size."""
    mixed_px: tuple[CropSizes, ...] = ()
    """Pairs of sizes, of which each step draws one for its whole batch, as in DINOv3's high-resolution
    adaptation; none larger than `global_px` and `local_px`. Empty: those two in every step."""
    num_local: int = Field(default=8, ge=0, le=256)
    """Local crops a patch, seen by the student alone."""
    global_scale: Scale = (0.32, 1.0)
    """Area of a global crop as a share of the patch."""
    local_scale: Scale = (0.05, 0.32)
    """Area of a local crop as a share of the patch."""
    max_aspect: float = Field(default=4 / 3, ge=1, le=10)
    """Longest side of a crop over its shortest, before both become one length: how far nuclei are stretched.
    Virchow2's extended-context translation stays within 0.95 and 1.05: 1.05, and a narrow `global_scale`."""
    rotate: bool = True
    """Rotations by 90° and flips: tissue has no up."""
    color_jitter: float = Field(default=0.8, ge=0, le=1)
    """Probability of brightness / contrast / saturation / hue jitter."""
    brightness: float = Field(default=0.4, ge=0, le=1)
    """A jittered crop's brightness is multiplied by 1 ± this; contrast and saturation alike."""
    contrast: float = Field(default=0.4, ge=0, le=1)
    """The contrast of a jittered crop is multiplied by 1 ± this."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """The saturation of a jittered crop is multiplied by 1 ± this."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Largest turn of the hue, in whole turns."""
    stain_jitter: float = Field(default=0.05, ge=0, le=10)
    """Standard deviation of the jitter of haematoxylin, eosin and residual, as a factor and as an amount in
    natural optical density. No number published for HED of scikit-image: 0.05 there is about 0.7 here."""
    grayscale: float = Field(default=0.2, ge=0, le=1)
    """Probability that a crop loses its colour."""
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """Probability of a Gaussian blur on the first global, the second global and every local crop, as the
    papers give it. DINO's and DINOv2's code inverts it: their released weights saw 0.0, 0.9, 0.5."""
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, in pixels of the crop."""
    solarize: float = Field(default=0.0, ge=0, le=1)
    """Probability on the second global crop; off for H&E."""
    mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue, which run from 0 to 1; part of every teacher's card."""
    std: tuple[_Spread, _Spread, _Spread] = (0.5, 0.5, 0.5)
    """Red, green and blue are divided by it after `mean` is subtracted."""

    def variants(self) -> tuple[tuple[float, Self], ...]:
        """(share of the steps, configuration of their crops) of each pair of sizes; itself alone where
        nothing is mixed."""
        total = sum(sizes.weight for sizes in self.mixed_px)
        return tuple(
            (sizes.weight / total, self.model_copy(update=sizes.model_dump(exclude={"weight"})))
            for sizes in self.mixed_px
        ) or ((1.0, self),)

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for sizes in self.mixed_px:
            if sizes.global_px > self.global_px or sizes.local_px > self.local_px:
                raise ValueError(
                    f"mixed_px has {sizes.global_px} and {sizes.local_px} px, more than global_px"
                    f" {self.global_px} and local_px {self.local_px}: these are the largest of all"
                )
        wider = [own >= other for own, other in zip(self.local_scale, self.global_scale, strict=True)]
        if self.num_local and all(wider) and self.local_scale != self.global_scale:
            raise ValueError(
                f"local_scale {list(self.local_scale)} lies above global_scale {list(self.global_scale)}:"
                " local crops are the smaller ones"
            )
        if not 0.01 <= self.blur_sigma_px[0] <= self.blur_sigma_px[1] <= self.global_px:
            raise ValueError("blur_sigma_px must be two lengths with 0.01 ≤ low ≤ high ≤ global_px")
        return self
