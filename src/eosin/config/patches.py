"""Configuration of patches: those that training sees, and the held-out set that judges it without labels."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from eosin.config.base import MAX_SEED, NAME_PATTERN, Rising, Section


class EncodingConfig(Section):
    """How the images of a patch set are stored."""

    encoding: Literal["png", "jpeg"] = "png"
    """Of the images: png keeps every pixel, jpeg is several times smaller."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    """Quality of `encoding: jpeg`, 1 to 100; no effect on png."""
    format: Literal["parquet", "webdataset"] = "parquet"
    """Of the shards: Parquet, or tars that the webdataset library reads."""


class HeldOutConfig(EncodingConfig):
    """The patch set of held-out patients."""

    fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of patients (of slides, where no patient is known) kept from training, by a stable hash."""
    num_patches: int = Field(default=1024, ge=2)
    """Patches drawn from the held-out slides, as training draws them."""
    num_shards: int = Field(default=1, ge=1)
    """Shards that the set is decoded in, each by a process or pod of its own."""


HELD_OUT = "heldout"
SetName = Annotated[str, Field(pattern=NAME_PATTERN)]
_Hue = Annotated[int, Field(ge=0, le=180)]
_Byte = Annotated[int, Field(ge=0, le=255)]


class HsvFilterConfig(Section):
    """Keep a decoded patch only where enough of its pixels look like stained tissue, in OpenCV's 8-bit HSV.

    The defaults are those of Midnight (Karasikov et al. 2025). A rejected patch is drawn again; of a
    sample whose 32 draws are all rejected, the one with the largest share is taken.
    """

    hue: Annotated[tuple[_Hue, _Hue], Rising] = (90, 180)
    """Least and largest hue, in steps of two degrees (0 to 180)."""
    saturation: Annotated[tuple[_Byte, _Byte], Rising] = (8, 255)
    """Least and largest saturation, 0 to 255."""
    value: Annotated[tuple[_Byte, _Byte], Rising] = (103, 255)
    """Least and largest value (brightness), 0 to 255."""
    min_share: float = Field(default=0.6, ge=0, le=1)
    """Smallest share of pixels within all three ranges."""


class PatchSetConfig(EncodingConfig):
    """What grids and sampled sets share; `eosin decode RUN --name NAME` publishes one."""

    split: Literal["all", "train", "heldout"] = "all"
    """All slides, or those that training draws from, or those kept from it."""
    slides: tuple[str, ...] = Field(default=("*",), min_length=1)
    """Patterns of slide keys: `tcga/*.svs`."""
    hsv_filter: HsvFilterConfig | None = None
    """Leave out patches by their colours; None: none."""
    patches_per_shard: int = Field(default=1024, ge=1)
    """A shard's images are in memory until it is published, and a killed decode goes on after the last."""


class GridConfig(PatchSetConfig):
    """A regular grid of patches over the tissue of slides; the shards of a slide hold no other's patches."""

    kind: Literal["grid"] = "grid"
    """A regular grid; what a set is that does not say its kind."""
    mpp: float = Field(default=0.5, gt=0)
    """Magnification, µm a pixel."""
    patch_px: int | None = Field(default=None, gt=0)
    """Side of the patches; None: `patches.patch_px`."""
    overlap_px: int = Field(default=0, ge=0)
    """Pixels, at `mpp`, that a patch shares with the next."""
    min_foreground: float = Field(default=0.4, ge=0, le=1)
    """Smallest share of tissue in a patch."""


class SampledConfig(PatchSetConfig):
    """Patches drawn as training draws them (`patches.mpp`, `weighting` and the rest), in order of slides."""

    kind: Literal["sampled"]
    """Drawn as training draws."""
    num_patches: int = Field(default=1024, ge=1)
    """The patches of a smaller set are among those of a larger one."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of the draw; another one is another set."""


def _kind_of(value: Any) -> str:
    """A set that does not say its kind is a grid."""
    kind = value.get("kind", "grid") if isinstance(value, dict) else getattr(value, "kind", "grid")
    return str(kind)


SetConfig = Annotated[
    Annotated[GridConfig, Tag("grid")] | Annotated[SampledConfig, Tag("sampled")],
    Discriminator(_kind_of, "set-kind", "kind is grid or sampled"),
]


class PricesConfig(Section):
    """What reading costs, for `--dry-run`: by default AWS's list prices of S3 Standard in us-east-1, read
    from the same region. Other regions and stores differ."""

    usd_per_1000_requests: float = Field(default=0.0004, ge=0)
    """GET requests."""
    usd_per_gb: float = Field(default=0.0, ge=0)
    """Data read: nothing within a region; 0.02 from another one of AWS, 0.09 from outside."""


class CurationConfig(Section):
    """Draw from clusters of an earlier teacher's features, so that common tissue does not drown what is rare.

    A visit draws a cluster, every branch of the tree alike, then a slide of it, and each of its patches a
    cell there: the patch's centre is uniform in the cell, whatever its magnification.
    """

    clusters: str
    """URI of what `eosin curate` published."""
    max_oversampling: float = Field(default=10.0, gt=1)
    """A cluster gets at most so many times its share of the cells: a few odd patches are not seen all day."""


class PatchesConfig(Section):
    """Which patches training draws, and how they are read. Magnifications in µm a pixel."""

    source: str = "slides"
    """slides, or the URI of a published patch set to train on: its patches are drawn uniformly, and what
    says how to draw from slides has no effect."""
    patch_px: int = Field(default=256, gt=0)
    """Side of the square patch handed to augmentation, at the drawn mpp."""
    mpp: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Magnifications to draw from, µm a pixel."""
    mpp_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weights of `mpp`; None: equal."""
    mpp_range: tuple[float, float] | None = None
    """Finest and coarsest magnification; draw uniformly in log mpp between them, in place of `mpp`."""
    mpp_tolerance: float = Field(default=0.1, ge=0)
    """A level up to this much coarser than the wanted mpp still serves (0.1: 0.55 for 0.5)."""
    weighting: Literal["slide", "area"] = "slide"
    """slide: every slide alike; area: by tissue area."""
    cohort_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Share of the training draws that each cohort gets, in proportion; within one, slides are drawn by
    `weighting`. A cohort that is not named gives none; slides of no cohort are those of `""`."""
    curation: CurationConfig | None = None
    """None: by slide or area alone; else by clusters of tissue, in place of `weighting`."""
    min_foreground: float = Field(default=0.4, ge=0, le=1)
    """Smallest share of tissue in a patch (the paper's 40 %)."""
    hsv_filter: HsvFilterConfig | None = None
    """None: no look at the colours; `{}`: Midnight's thresholds."""
    patches_per_visit: int = Field(default=1, ge=1)
    """Patches drawn together from one slide; part of the sequence, however the bytes come."""
    slide_fraction: float = Field(default=1.0, gt=0, le=1)
    """Train on this share of the slides alone; a smaller share is part of a larger one."""
    num_distinct: int | None = Field(default=None, ge=1)
    """Train on so many different patches alone; fewer are the first of more. None: a new one every time."""
    num_distinct_per_slide: int | None = Field(default=None, ge=1)
    """The same, of each slide: a draw is one of so many patches that the slide has, whatever other slides are
    trained on."""
    reader: Literal["range", "stage"] = "range"
    """range: tiles straight from the store; stage: whole slides on a local disk first."""
    stage_dir: str | None = None
    """Folder on a local disk for whole slides, and for copies of patch sets; None: a temporary folder."""
    stage_bytes: int = Field(default=200 * 2**30, gt=0)
    """Most bytes of slides in `stage_dir`, of all processes there together; those used longest ago go."""
    decoder: Literal["cpu", "cucim", "nvimgcodec"] = "cpu"
    """Pinned, since decoders differ by a grey level or two."""
    decoder_timeout_s: float = Field(default=60.0, gt=0)
    """cuCIM, nvImageCodec and OpenSlide run in processes of their own: one that crashes, or does not answer
    for so long, costs the patch, which is drawn again and recorded under the run's quarantine/."""
    tile_cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """Most bytes of decoded tiles a reader keeps in memory, in uint8 RGB."""
    prices: PricesConfig = PricesConfig()
    """What requests and bytes cost, for `--dry-run`."""
    prefetch_batches: int = Field(default=2, ge=1)
    """Batches that are read ahead of the one in use; each is in memory."""
    heldout: HeldOutConfig = HeldOutConfig()
    """The held-out patch set, which judges teachers without labels."""
    sets: dict[SetName, SetConfig] = {}
    """Patch sets by name, each decoded when asked for: `eosin decode RUN --name NAME`. A pipeline decodes
    those that a task of `evaluate` names."""

    @model_validator(mode="after")
    def _weights_match(self) -> Self:
        for name, grid in self.sets.items():
            if isinstance(grid, GridConfig) and grid.overlap_px >= (grid.patch_px or self.patch_px):
                raise ValueError(f"sets.{name}: overlap_px {grid.overlap_px} leaves nothing of the patch")
        if HELD_OUT in self.sets:
            raise ValueError(f"sets: {HELD_OUT} is the name of the held-out set; choose another")
        if self.mpp_range is not None and not 0 < self.mpp_range[0] < self.mpp_range[1]:
            raise ValueError("mpp_range needs two values above 0, the finer one first")
        if self.mpp_range is not None and self.mpp_weights is not None:
            raise ValueError("mpp_weights are for the values of mpp; mpp_range has none")
        if self.num_distinct is not None and self.num_distinct_per_slide is not None:
            raise ValueError("num_distinct counts patches in all, num_distinct_per_slide of each: give one")
        if self.curation is not None and (self.cohort_weights or self.num_distinct_per_slide):
            raise ValueError("curation draws by clusters: it goes with neither cohort_weights nor"
                             " num_distinct_per_slide")  # fmt: skip
        if self.cohort_weights is not None and not any(self.cohort_weights.values()):
            raise ValueError("cohort_weights needs at least one weight above 0")
        if not self.mpp or any(mpp <= 0 for mpp in self.mpp):
            raise ValueError("mpp needs at least one value, all above 0")
        if self.mpp_weights is not None and len(self.mpp_weights) != len(self.mpp):
            raise ValueError(f"mpp_weights has {len(self.mpp_weights)} entries, mpp has {len(self.mpp)}")
        if self.mpp_weights is not None and not any(self.mpp_weights):
            raise ValueError("mpp_weights needs at least one weight above 0")
        return self

    @property
    def shown_mpp(self) -> tuple[float, ...]:
        """The magnifications a model sees: each of the discrete ones, or both ends of the range."""
        return self.mpp if self.mpp_range is None else self.mpp_range
