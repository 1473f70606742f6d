"""The method, its schedules, and how the work is cut up."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from eosin.config.base import Rising, Section, Share, Switch

_YEAR_S = 365 * 86_400
_Some = Annotated[float, Field(gt=0, le=1)]
_Shares = Annotated[tuple[_Some, _Some], Rising]


class DinoConfig(Section):
    """The loss on class tokens: temperatures and centring."""

    student_temperature: float = Field(default=0.1, ge=1e-3, le=10)
    """Divides the student's logits before the softmax."""
    teacher_temperature: float = Field(default=0.07, ge=1e-3, le=10)
    """Divides the teacher's logits, once it has risen."""
    teacher_temperature_warmup: float = Field(default=0.04, ge=1e-3, le=10)
    """What the teacher's temperature begins at; it rises linearly."""
    teacher_temperature_warmup_share: float = Field(default=0.3, ge=0, le=1)
    """Share of all steps over which the teacher's temperature rises."""
    centering: Literal["softmax", "sinkhorn"] | None = None
    """None: softmax for dino, Sinkhorn-Knopp for dinov2."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the running mean of the teacher's logits, with `centering: softmax`."""


class IbotConfig(Section):
    """The loss on masked patch tokens."""

    weight: float = Field(default=1.0, ge=0, le=1e3)
    """0 switches the masked-patch loss off."""
    mask_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of the global crops that are masked."""
    mask_ratio: Annotated[tuple[Share, Share], Rising] = (0.1, 0.5)
    """Least and largest share of a masked crop's patches that are hidden."""


class JepaConfig(Section):
    """I-JEPA's loss on hidden blocks of patches, an alternative to iBOT: with dinov2 and `ibot.weight: 0`."""

    weight: float = Field(default=0.0, ge=0, le=1e3)
    """Of the term in the loss; 0 switches it off."""
    mask_probability: float = Field(default=1.0, gt=0, le=1)
    """Share of the global crops that are masked."""
    mask_ratio: _Shares = (0.3, 0.4)
    """Least and largest share of a masked crop's patches that are hidden."""
    block_scale: _Shares = (0.1, 0.2)
    """Least and largest share of a crop that one block hides; blocks may overlap, the last may be smaller."""
    predictor_depth: int = Field(default=4, ge=1, le=256)
    """Blocks of the predictor."""
    predictor_dim: int | None = Field(default=None, gt=0, le=65536)
    """Width of the predictor; None: the backbone's."""


class GramConfig(Section):
    """Gram anchoring: similarities between a crop's patches are held to those of an earlier teacher."""

    weight: float = Field(default=0.0, ge=0, le=1e3)
    """Of the term in the loss; 0 switches it off. DINOv3 has 2."""
    start_step: int = Field(default=0, ge=0)
    """First step of the term, at which the Gram teacher becomes a copy of the teacher."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the weight rises linearly from 0, from `start_step` on."""
    refresh_every_steps: int = Field(default=10_000, ge=1)
    """It becomes a copy of the teacher again every so many steps after that."""
    max_refreshes: int = Field(default=3, ge=0)
    """How often, at most."""
    px_multiplier: float = Field(default=1, ge=1, le=4)
    """Side of the crop it sees as a multiple of the global crops', cut from the patch anew and with colours
    as they are; its patch tokens are resampled to the student's grid. DINOv3 has 2, and 1.5 above 256 px."""

    def crop_px(self, global_px: int) -> int:
        """Side of the crops the Gram teacher sees in place of those of `global_px`; 0 where there is none."""
        return round(global_px * self.px_multiplier) if self.weight > 0 else 0

    def weight_at(self, step: int) -> float:
        """Weight of the term in step `step` (from 0)."""
        since = step - self.start_step
        return self.weight * min(max(since, 0) / self.warmup_steps, 1.0) if self.warmup_steps else self.weight

    def is_refresh(self, step: int) -> bool:
        """Whether the Gram teacher becomes a copy of the teacher before step `step` (from 0)."""
        since = step - self.start_step
        refreshes, rest = divmod(since, self.refresh_every_steps)
        return self.weight > 0 and since >= 0 and rest == 0 and refreshes <= self.max_refreshes


class PakaConfig(Section):
    """Patch kernel alignment: student and teacher relate a crop's patches alike, behind a head of its own."""

    weight: float = Field(default=0.0, ge=0, le=1e3)
    """Of the term in the loss; 0 switches it off. PaKA and lightly-train have 1."""
    start_step: int = Field(default=0, ge=0)
    """First step of the term."""
    hidden_dim: int = Field(default=2048, gt=0, le=65536)
    """Width of the two hidden layers of its head."""
    out_dim: int = Field(default=256, gt=0, le=65536)
    """Width of the features whose kernels are compared."""


class DistillConfig(Section):
    """A frozen teacher in place of the student's own moving average, which is exported all the same."""

    teacher: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """timm:NAME, timm:hf-hub:OWNER/NAME, timm:ARCH@URI of a file of weights, the URI of an exported teacher's
    folder, or run:URI: the teacher of another run's newest checkpoint with its heads, which stay as they are.
    Any other teacher's heads are a moving average of the student's."""
    teacher_px: int | None = Field(default=None, gt=0)
    """Side to which global crops are resized for the teacher, px; None: left as they are. A multiple of its
    patch size; its patch tokens are resampled to the student's grid."""
    hide_patches: bool = False
    """Hide patches from the student, as iBOT does, and compare those; else, as DINOv2 distils, hide none and
    compare all."""


class KoLeoConfig(Section):
    """Entropy of the class-token features of a set of patches by the distance to the nearest neighbour."""

    weight: float = Field(default=0.1, ge=0, le=1e3)
    """Of the term in the loss, with dinov2; 0 switches it off."""
    set_size: int | None = Field(default=None, ge=2)
    """Patches that are compared with each other, neighbours in the batch; None: those of a microbatch. Where
    a microbatch is no whole number of sets, the student runs once more over global crops."""


class KdeConfig(Section):
    """Uniformity of the class-token features by a kernel density; usually instead of KoLeo."""

    weight: float = Field(default=0.0, ge=0, le=1e3)
    """Of the term in the loss, with dinov2; 0 switches it off."""
    concentration: float = Field(default=5.0, gt=0, le=1e3)
    """κ of the kernel exp(κ cos): the larger, the more local."""
    set_size: int | None = Field(default=None, ge=2)
    """Patches that are compared with each other, neighbours in the batch; None: those of a microbatch. Where
    a microbatch is no whole number of sets, the student runs once more over global crops."""


class OptimizerConfig(Section):
    """AdamW, its schedules and its multipliers."""

    lr: float = Field(default=2e-4, gt=0, le=1)
    """Base learning rate for a batch of 1024; multiplied by sqrt(batch_size / 1024)."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the last step, to which it falls by a cosine; not multiplied."""
    warmup_steps: int = Field(default=10_000, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = Field(default=0.04, ge=0, le=10)
    """At the first step, of AdamW; biases, norms and LayerScale have none."""
    weight_decay_end: float = Field(default=0.2, ge=0, le=10)
    """At the last step, to which it goes by a cosine."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients."""
    clip_grad_norm: float | None = Field(default=3.0, ge=1e-6)
    """Largest norm of the gradients of what `clip_by` says; None: no clipping."""
    clip_by: Literal["submodule", "parameter"] = "submodule"
    """submodule: the backbone and each head, as DINOv2; parameter: every tensor by itself, as DINO."""
    layer_decay: float = Field(default=1.0, ge=0.01, le=1)
    """Factor on the learning rate from one block to the one below it; 1: all alike."""
    patch_embed_lr_multiplier: float = Field(default=0.2, ge=0, le=100)
    """Factor on the learning rate of the patch embedding."""
    freeze_last_layer_steps: int = Field(default=1250, ge=0)
    """Steps at the start in which the prototypes do not learn."""


class CollapseConfig(Section):
    """Watches the teacher's features at every log line, and warns where they no longer tell patches apart."""

    sample_size: int = Field(default=256, ge=16, le=65536)
    """Newest teacher features that RankMe is taken of; it is at most this."""
    grace_steps: int | None = Field(default=None, ge=0)
    """Judge nothing before this step; None: twice the warm-up. A random network's features are alike too."""
    min_entropy_share: float = Field(default=0.01, ge=0, le=1)
    """Warn where the teacher's entropy is below this share of log(num_prototypes)."""
    min_rankme: float = Field(default=2.0, ge=0)
    """Warn where RankMe of the sample is below this."""
    max_center_norm: float = Field(default=0.995, ge=0, le=1)
    """Warn where the mean of the normalised features is longer than this."""
    stop: bool = False
    """Stop training, not only warn, after `patience` log lines in a row."""
    patience: int = Field(default=3, ge=1)
    """Log lines in a row below a floor after which `stop` stops."""

    @model_validator(mode="after")
    def _floor_is_reached(self) -> Self:
        if self.min_rankme > self.sample_size:
            raise ValueError(f"min_rankme {self.min_rankme:g} is above sample_size {self.sample_size},"
                             " the most that RankMe of the sample can be")  # fmt: skip
        return self


class ElasticConfig(Section):
    """Nodes, restarts and timeouts of a training whose world may change."""

    min_nodes: int = Field(default=1, ge=1)
    """Agents that a training on this machine starts; on a cluster the pools say it."""
    max_nodes: int = Field(default=1, ge=1)
    """Only checked: so many nodes of workers must each find a micro-batch. On a cluster the pools say it."""
    workers_per_node: int = Field(default=1, ge=1)
    """Processes a node: its GPUs, or a share of its cores."""
    max_restarts: int = Field(default=1000, ge=0)
    """How often an agent starts its workers again; every lost node costs each agent one."""
    max_restarts_without_progress: int = Field(default=3, ge=1)
    """Starts in a row that commit no step before training ends with an error."""
    join_timeout_s: float = Field(default=86400, gt=0, le=_YEAR_S)
    """How long an agent waits for the fewest nodes that may train."""
    last_call_timeout_s: float = Field(default=5, gt=0, le=_YEAR_S)
    """How long agents that meet wait for more, once there are enough. Every loss of a node costs it."""
    keep_alive_interval_s: float = Field(default=5, gt=0, le=3600)
    """How often agents tell the rendezvous store that they live."""
    keep_alive_attempts: int = Field(default=3, ge=1, le=1000)
    """Missed signs of life after which a node is given up."""
    shutdown_timeout_s: float = Field(default=25, gt=0, le=_YEAR_S)
    """From SIGTERM to SIGKILL of a worker: the time to publish its newest snapshot."""
    process_group_timeout_s: float = Field(default=600, gt=0, le=_YEAR_S)
    """How long a collective waits for a rank that lives but does not come."""
    hang_timeout_s: float | None = Field(default=None, ge=1, le=_YEAR_S)
    """Kill and restart a node's workers that finish no step for so long; off by default. Finds what hangs
    outside collectives too. Must exceed the longest step and the time that two checkpoints need to upload."""
    rendezvous_patience_s: float = Field(default=600, ge=0, le=_YEAR_S)
    """How long an agent that lost the rendezvous store tries to meet the others again, keeping its node's
    snapshots, before it ends and its pod is replaced."""
    memory_snapshots: Switch = "auto"
    """Keep each snapshot in shared memory, where a lost process leaves it. auto: where there is room;
    on: refuse to train without."""
    load_balance: Literal["speed", "even"] = "speed"
    """Share microbatches out by the measured speed of the ranks, or evenly. Sharded parameters need even
    shares."""
    load_balance_every_steps: int = Field(default=500, ge=1)
    """Look at the ranks' speed so often, and once soon after every start."""


class PhaseConfig(Section):
    """An earlier part of a training whose course was changed on purpose, with its own values."""

    until_step: int = Field(ge=1)
    """The step after which the course was changed."""
    num_steps: int = Field(ge=1)
    """`train.num_steps` until then."""
    momentum: float = Field(ge=0, lt=1)
    """`train.momentum` until then."""
    lr: float = Field(gt=0, le=1)
    """`train.optimizer.lr` until then."""
    min_lr: float = Field(ge=0)
    """`train.optimizer.min_lr` until then."""
    warmup_steps: int = Field(ge=0)
    """`train.optimizer.warmup_steps` until then."""
    weight_decay_end: float = Field(ge=0)
    """`train.optimizer.weight_decay_end` until then."""
    changed_by: str = ""
    """Who changed the course then, and when."""


class TrainConfig(Section):
    """The method, its schedules, and how a step's work is cut up."""

    method: Literal["dino", "dinov2"] = "dinov2"
    """dino: class tokens alone, without a uniformity term; dinov2: with masked patches (iBOT) and KoLeo."""
    num_steps: int = Field(default=125_000, ge=1, le=10**9)
    """Steps of the whole training; every schedule ends there."""
    phases: tuple[PhaseConfig, ...] = ()
    """Earlier parts of the training, written by `eosin train RUN --prolong STEPS` and `--set`. After the last
    of them schedules begin anew: the learning rate goes from what it was to its peak in
    `optimizer.warmup_steps` and falls to `optimizer.min_lr`, the teacher's momentum rises from `momentum` to
    1, weight decay goes on to its end."""
    batch_size: int = Field(default=1024, ge=1, le=2**20)
    """Patches a step over all workers; never depends on their number."""
    num_microbatches: int = Field(default=32, ge=1)
    """Microbatches the batch is cut into, whatever the world size; at least four a rank is wise."""
    precision: Literal["float32", "bf16"] = "bf16"
    """Of matrix products (autocast); weights, losses and gradients stay float32."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: student, teacher and optimizer whole on every worker; fsdp: sharded over them (FSDP2), for
    models that do not fit. Changing it does not change the result."""
    deterministic: bool = False
    """Sum microbatch gradients in microbatch order, so that any world size gives the same bits."""
    pack: Switch = "auto"
    """Take global and local crops through the blocks as one sequence. auto: on a GPU, and where blocks are
    gathered from shards; on a CPU, larger operations gain nothing and the copies cost."""
    compile: bool = False
    """Compile blocks and losses: minutes at every start, faster steps after. Needs a C++ compiler."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for a third more operations."""
    momentum: float = Field(default=0.992, ge=0, lt=1)
    """Of the teacher; rises to 1 by a cosine."""
    dino: DinoConfig = DinoConfig()
    """The loss on class tokens."""
    ibot: IbotConfig = IbotConfig()
    """The loss on masked patch tokens."""
    koleo: KoLeoConfig = KoLeoConfig()
    """The term that spreads class tokens by their nearest neighbours."""
    kde: KdeConfig = KdeConfig()
    """The term that spreads class tokens by a kernel density."""
    jepa: JepaConfig = JepaConfig()
    """An alternative loss on masked patch tokens."""
    gram: GramConfig = GramConfig()
    """The term that holds on to an earlier teacher's dense features."""
    paka: PakaConfig = PakaConfig()
    """The term that aligns the student's dense features with the teacher's."""
    distill: DistillConfig | None = None
    """A frozen teacher to learn from; None: the student's moving average teaches."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedules."""
    collapse: CollapseConfig = CollapseConfig()
    """Warnings where the teacher tells nothing apart."""
    elastic: ElasticConfig = ElasticConfig()
    """Nodes, restarts and timeouts."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """A checkpoint goes to the bucket every so many steps, and at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay in the bucket."""
    snapshot_every_steps: int = Field(default=50, ge=1)
    """Copy the state to host memory so often; a worker told to go publishes the newest copy."""
    export_every_steps: int = Field(default=12_500, ge=1)
    """A teacher is exported every so many steps, and at the end."""
    log_every_steps: int = Field(default=10, ge=1)
    """A line goes to the log every so many steps."""
    tensorboard: bool = False
    """Write TensorBoard's files too, under the run's tensorboard/; needs eosin[tensorboard]."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Tell Weights & Biases or MLflow of configuration, curves, report and teacher; needs eosin[wandb] or
    eosin[mlflow], and the environment says where to (docs/how-to/training.md)."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """What a worker's device could do, for `mfu` of the log; None: its matrix rate, measured at the start."""

    @property
    def centering(self) -> Literal["softmax", "sinkhorn"]:
        """How the teacher's logits are centred."""
        return self.dino.centering or ("softmax" if self.method == "dino" else "sinkhorn")

    @property
    def uses_ibot(self) -> bool:
        """The masked-patch loss is part of dinov2 only."""
        return self.method == "dinov2" and self.ibot.weight > 0 and self.ibot.mask_probability > 0

    @property
    def uses_jepa(self) -> bool:
        """I-JEPA's loss is part of dinov2 only."""
        return self.method == "dinov2" and self.jepa.weight > 0

    @property
    def hides_patches(self) -> bool:
        """Whether the student sees mask tokens in the place of some patches."""
        return self.uses_jepa or (self.uses_ibot and (self.distill is None or self.distill.hide_patches))

    @property
    def masking(self) -> IbotConfig | JepaConfig:
        """What says how patches are hidden."""
        return self.jepa if self.uses_jepa else self.ibot

    @property
    def keeps_teacher_heads(self) -> bool:
        """Whether the teacher comes with trained heads, which then never move."""
        return self.distill is not None and self.distill.teacher.startswith("run:")

    def planned_phases(self) -> tuple[PhaseConfig, ...]:
        """All parts of the training, the one that ends at `num_steps` last."""
        now = PhaseConfig(
            until_step=self.num_steps, num_steps=self.num_steps, momentum=self.momentum,
            lr=self.optimizer.lr, min_lr=self.optimizer.min_lr, warmup_steps=self.optimizer.warmup_steps,
            weight_decay_end=self.optimizer.weight_decay_end,
        )  # fmt: skip
        return (*self.phases, now)

    def milestones(self) -> list[tuple[str, int]]:
        """Steps at which training changes its course, each with what happens there, by step."""
        found = [("change of course", phase.until_step) for phase in self.phases]
        begin = found[-1][1] if found else 0
        found.append(("end of warm-up", begin + self.optimizer.warmup_steps))
        gram = range(self.gram.start_step, self.num_steps, self.gram.refresh_every_steps)
        found += [("Gram teacher", step) for step in gram if self.gram.is_refresh(step)]
        if self.paka.weight > 0:
            found.append(("kernel alignment", self.paka.start_step))
        return sorted((each for each in found if 0 < each[1] < self.num_steps), key=lambda each: each[1])

    def before_last_change(self) -> Self:
        """As it was before the last of `phases` ended."""
        *kept, last = self.phases
        rates = last.model_dump(include={"lr", "min_lr", "warmup_steps", "weight_decay_end"})
        optimizer = self.optimizer.model_copy(update=rates)
        changed = {"num_steps": last.num_steps, "momentum": last.momentum, "phases": tuple(kept)}
        return self.model_copy(update={**changed, "optimizer": optimizer})

    def uniformity_sets(self) -> dict[Literal["koleo", "kde"], int]:
        """Patches of a set of each uniformity term that is on; dino has none."""
        terms: dict[Literal["koleo", "kde"], KoLeoConfig | KdeConfig] = {"koleo": self.koleo, "kde": self.kde}
        on = {name: term for name, term in terms.items() if self.method == "dinov2" and term.weight > 0}
        return {name: term.set_size or self.microbatch_size for name, term in on.items()}

    @property
    def collapse_first_step(self) -> int:
        """The step from which a collapse is judged."""
        grace = self.collapse.grace_steps
        return 2 * self.optimizer.warmup_steps if grace is None else grace

    @property
    def microbatch_size(self) -> int:
        """Patches of one microbatch."""
        return self.batch_size // self.num_microbatches

    @model_validator(mode="after")
    def _phases_follow_each_other(self) -> Self:
        begin = 0
        for phase in self.planned_phases():
            if not begin < phase.until_step <= phase.num_steps:
                raise ValueError(
                    f"a phase from step {begin} to step {phase.until_step} of {phase.num_steps} cannot be:"
                    f" num_steps must be above {begin}"
                )
            if begin and phase.warmup_steps >= phase.num_steps - begin:
                raise ValueError(
                    f"optimizer.warmup_steps {phase.warmup_steps} is not below the"
                    f" {phase.num_steps - begin} steps after step {begin}: lower it"
                )
            begin = phase.until_step
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by num_microbatches {self.num_microbatches}: "
                f"{self.batch_size} = {self.num_microbatches} × {self.batch_size // self.num_microbatches}"
                f" + {self.batch_size % self.num_microbatches}"
            )
        for name, size in self.uniformity_sets().items():
            if self.batch_size % size:
                raise ValueError(f"batch_size {self.batch_size} is no whole number of {name}.set_size {size}")
        peak = self.optimizer.lr * (self.batch_size / 1024) ** 0.5
        if self.optimizer.min_lr > peak:
            raise ValueError(
                f"optimizer.min_lr {self.optimizer.min_lr:g} is above the largest learning rate, {peak:g}:"
                f" optimizer.lr {self.optimizer.lr:g} × sqrt({self.batch_size} / 1024)"
            )
        if self.uses_jepa and self.uses_ibot:
            raise ValueError("jepa is an alternative to ibot: set ibot.weight or jepa.weight to 0")
        unused = "jepa" if self.jepa.weight else "kde" if self.kde.weight else ""
        if self.method == "dino" and unused:
            raise ValueError(
                f"{unused} is part of method dinov2 alone: set {unused}.weight to 0, or the method"
            )
        if self.dino.teacher_temperature_warmup > self.dino.teacher_temperature:
            raise ValueError("dino.teacher_temperature_warmup is what the temperature rises from: set it to"
                             f" {self.dino.teacher_temperature:g} (teacher_temperature) or less")  # fmt: skip
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError("trackers names one twice")
        if self.elastic.min_nodes > self.elastic.max_nodes:
            raise ValueError("elastic.min_nodes exceeds elastic.max_nodes")
        return self
