"""Parallel strategies: student, teacher and gradients whole on every rank (`Replicated`) or cut (`Sharded`).

Both run a step's microbatches as passes of one microbatch and end with the gradient of the whole batch, in
float32: a sum over microbatches, never a mean over ranks.
"""

import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from eosin.config.train import TrainConfig
from eosin.models.backbone import Backbone
from eosin.models.frozen_teacher import FrozenTeacher
from eosin.models.network import Network
from eosin.training.engine.load_balance import Stopwatch
from eosin.training.world import World

# As torch.nn.utils.clip_grad_norm_.
_CLIP_EPS = 1e-6


def parallelize(
    student: Network, teacher: Network, config: TrainConfig, world: World, *frozen: FrozenTeacher | Backbone
) -> "Replicated | Sharded":
    """Put all networks on this rank's device as `config.parallel` says.

    A world of one without a process group has nothing to shard with, and nothing to gain.
    """
    if config.parallel == "fsdp" and dist.is_initialized():
        return Sharded(student, teacher, world, *frozen)
    for network in (student, teacher, *frozen):
        network.to(world.device)
    return Replicated(student, world)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of `tensor`, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`; a collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def let_go(network: nn.Module) -> None:
    """Let go of what a pass without gradients has gathered: its backward pass, which would, never comes, and
    after the next step it would be stale."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def clip_(module: nn.Module, norm: Tensor, limit: float) -> None:
    """Scale the gradients of `module` so that their norm, which is `norm`, is at most `limit`."""
    gradients = [local(p.grad) for p in module.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, (limit / (norm + _CLIP_EPS)).clamp(max=1.0))


def clip_each_(student: Network, norms: Tensor, limit: float) -> None:
    """Scale every gradient of `student` so that its norm, which is in `norms`, is at most `limit`."""
    factors = (limit / (norms + _CLIP_EPS)).clamp(max=1.0)
    for gradient, factor in zip(_gradients_of(student), factors.unbind(), strict=True):
        local(gradient).mul_(factor)


class Replicated:
    """Everything on every rank, kept alike by one all-reduce of all gradients a step."""

    is_sharded = False

    def __init__(self, student: Network, world: World) -> None:
        self._student = student
        self._world = world
        self.stopwatch: Stopwatch | None = None
        """Where one is set, it runs while this rank works on its own microbatches, waiting for nobody."""
        self._gradients = _flat_gradients(student)
        self._kept: dict[int, Tensor] = {}

    def passes(self) -> list[int | None]:
        """Microbatches in the order in which this rank runs the student; None: a pass of zero weight."""
        return list(self._world.own_microbatches)

    def num_teacher_passes(self) -> int:
        """How often this rank runs the teacher a step."""
        return len(self._world.own_microbatches)

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self._kept.clear()
        self._gradients.zero_()
        if self.stopwatch is not None:
            self.stopwatch.start()

    def end_pass(self, microbatch: int | None) -> None:
        """After the backward pass of `microbatch`."""
        if self._world.deterministic and microbatch is not None:
            self._kept[microbatch] = self._gradients.clone()
            self._gradients.zero_()

    def finish(self) -> None:
        """Leave the sum over all microbatches of all ranks in every parameter's `grad`."""
        if self.stopwatch is not None:
            self.stopwatch.stop()
        if self._world.deterministic:
            self._gradients.copy_(self._world.sum_over_microbatches(self._kept, self._gradients))
        else:
            self._world.all_reduce(self._gradients)

    def gradient_norms(self) -> dict[str, Tensor]:
        """2-norm of each submodule's gradient, the same on every rank."""
        together = not self._world.deterministic
        modules = self._student.submodules()
        return {name: _norm(_gradients_of(module), together) for name, module in modules.items()}

    def parameter_norms(self) -> Tensor:
        """2-norm of every parameter's gradient, in the order of the parameters, the same on every rank."""
        return torch.stack([torch.linalg.vector_norm(gradient) for gradient in _gradients_of(self._student)])


class Sharded:
    """As `Replicated`, by FSDP2: a rank holds rows of every tensor and gathers a unit while it runs.

    A rank that skipped a pass would leave the others waiting in a collective, so all run as many passes
    as the largest share has microbatches, the surplus with zero weight. In deterministic mode those of all
    ranks are run one after another, so that they add up in order: a check, as slow as one rank.
    """

    is_sharded = True

    def __init__(
        self, student: Network, teacher: Network, world: World, *frozen: FrozenTeacher | Backbone
    ) -> None:
        self._student = student
        self._world = world
        self.stopwatch: Stopwatch | None = None
        self._sums: dict[nn.Parameter, Tensor] = {}
        mesh = init_device_mesh(world.device.type, (world.size,))
        for network in (student, teacher):
            _shard(network, mesh, keeps_roots=network is student)
        for backbone in frozen:
            _cut(mesh, *backbone.vit.blocks, backbone)

    def passes(self) -> list[int | None]:
        """Own microbatches, then surplus passes (None); in deterministic mode all ranks', in order."""
        own = self._world.own_microbatches
        if self._world.deterministic:
            return [
                microbatch if microbatch in own else None
                for microbatch in range(self._world.num_microbatches)
            ]
        return [*own, *[None] * (self._world.num_passes - len(own))]

    def num_teacher_passes(self) -> int:
        """As many as the rank with the largest share needs, on every rank."""
        return self._world.num_passes

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self._sums.clear()
        for parameter in self._student.parameters():
            parameter.grad = None

    def end_pass(self, microbatch: int | None) -> None:
        """FSDP adds up passes by itself; in deterministic mode each gradient must be whole first."""
        if not self._world.deterministic:
            return
        for parameter in self._student.parameters():
            if parameter.grad is not None:
                before = self._sums.get(parameter)
                self._sums[parameter] = parameter.grad if before is None else before.add_(parameter.grad)
                parameter.grad = None

    def finish(self) -> None:
        """Leave the sum over all ranks in every trained parameter's `grad`, zeros where nothing came."""
        for parameter in self._student.parameters():
            if parameter.requires_grad:
                found = self._sums.get(parameter) if self._world.deterministic else parameter.grad
                parameter.grad = torch.zeros_like(parameter) if found is None else found
        self._sums.clear()

    def gradient_norms(self) -> dict[str, Tensor]:
        """From the shards by one all-reduce; in deterministic mode tensor by tensor, as `Replicated` does."""
        modules = self._student.submodules()
        if self._world.deterministic:
            return {name: _norm(map(whole, _gradients_of(module)), False) for name, module in modules.items()}
        norms = [_norm(map(local, _gradients_of(module)), True) for module in modules.values()]
        squares = [norm.double().square() for norm in norms]
        total = self._world.all_reduce(torch.stack(squares)).sqrt().float()
        return dict(zip(modules, total.unbind(), strict=True))

    def parameter_norms(self) -> Tensor:
        """As `gradient_norms`."""
        gradients = _gradients_of(self._student)
        if self._world.deterministic:
            return torch.stack([torch.linalg.vector_norm(whole(gradient)) for gradient in gradients])
        norms = torch.stack([torch.linalg.vector_norm(local(gradient)) for gradient in gradients])
        return self._world.all_reduce(norms.double().square()).sqrt().float()


def _shard(network: Network, mesh: DeviceMesh, *, keeps_roots: bool) -> None:
    """Cut `network` into units, each moved to the device as it is cut.

    All is gathered in float32, so that autocast casts what it casts of replicas. With
    `keeps_roots`, what a unit holds beside its inner units stays gathered between forward and backward;
    a teacher has no backward that would free it again.
    """
    _cut(mesh, *network.backbone.vit.blocks)
    roots = [part for head in network.heads for part in (head.last_layer, head.mlp)]
    others = filter(None, (network.adapter, network.paka_head, network.predictor))
    _cut(mesh, network.backbone, *roots, *others, keeps=keeps_roots)
    for head in network.heads:
        register_fsdp_forward_method(head.last_layer, "weight")
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # Residual branches are added out of place (models/drop_path.py), which is what it warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _cut(mesh: DeviceMesh, *units: nn.Module, keeps: bool = False) -> None:
    """Shard each of `units`; `keeps`: what it gathers for the forward pass, until the backward pass."""
    plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=plain, reshard_after_forward=not keeps)


def _gradients_of(module: nn.Module) -> Iterable[Tensor]:
    return (p.grad for p in module.parameters() if p.grad is not None)


def _norm(tensors: Iterable[Tensor], together: bool) -> Tensor:
    """2-norm of all `tensors`, by one kernel; or one held at a time, which is the same however they lie."""
    found = list(tensors) if together else []
    # A rank's rows of a short tensor may be none, which the kernel is not promised to take.
    if found and all(tensor.numel() for tensor in found):
        norms = torch._foreach_norm(found)
    else:
        norms = tuple(torch.linalg.vector_norm(tensor) for tensor in found or tensors)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def _flat_gradients(module: nn.Module) -> Tensor:
    """One float32 buffer that all gradients are views of, so that one all-reduce sums them."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat
