"""The frozen teacher of a distillation: its weights on every rank, its heads, its identity."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.models.export import load_teacher
from eosin.models.frozen_teacher import WHAT, FrozenTeacher, frozen_teacher, untrained_teacher
from eosin.models.init import RUN_PREFIX, TIMM_PREFIX
from eosin.models.network import HEADS, Network
from eosin.models.timm_model import load_timm, load_timm_file
from eosin.models.weights import HUB_PREFIX
from eosin.observability import RunLog
from eosin.training.warm_start import newest_state
from eosin.training.world import World


def first_frozen(
    config: RunConfig, networks: list[Network], world: World, log: RunLog
) -> FrozenTeacher | None:
    """The teacher to distil, alike on every rank; None where there is none. A collective.

    Rank 0 reads its weights, the others get them from there. Where it comes with heads (`run:URI`), all of
    `networks` begin with them. Raises `UserError` where it is not there or its heads are of another shape.
    """
    distill = config.train.distill
    if distill is None:
        return None
    found = untrained_teacher(distill.teacher)
    frozen = frozen_teacher(distill, config.augment, found, networks[0].backbone.patch_size)
    state = frozen.vit.state_dict()
    if world.rank == 0:
        theirs = _load(frozen.vit, distill.teacher)
        for network in networks if config.train.keeps_teacher_heads else ():
            _take_heads(network, theirs, distill.teacher)
        frozen.digest.copy_(_digest(state))
        log.event("distill", teacher=distill.teacher, sha256=bytes(frozen.digest.tolist()).hex(),
                  parameters=sum(p.numel() for p in frozen.vit.parameters()))  # fmt: skip
    heads = (head.state_dict() for network in networks for head in network.heads)
    for tensors in (state, *heads, {"digest": frozen.digest}):
        for value in tensors.values():
            world.broadcast(value)
    return frozen


def require_same_teacher(frozen: FrozenTeacher | None, began_with: bytes, teacher: str) -> None:
    """Raise `UserError` unless `began_with`, the digest of the weights that were read now, is that of the
    checkpoint, which has been put into `frozen`."""
    if frozen is not None and bytes(frozen.digest.tolist()) != began_with:
        raise UserError(
            f"{WHAT}: what lies at {teacher} is not what this training began with (SHA-256 differs)",
            hint="put the first one back, or begin a new run",
        )


def _load(vit: nn.Module, name: str) -> Mapping[str, Tensor]:
    """Put the weights of the teacher called `name` into `vit`; its run's other tensors, where it is one."""
    if name.startswith(RUN_PREFIX):
        _, parts = newest_state(name.removeprefix(RUN_PREFIX), WHAT)
        tensors, prefix = parts["teacher"], "backbone.vit."
        vit.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return tensors
    if name.startswith((TIMM_PREFIX, HUB_PREFIX)):
        arch, _, uri = name.removeprefix(TIMM_PREFIX).partition("@")
        module, _ = load_timm_file(arch, uri) if uri else load_timm(arch)
    else:
        module, _ = load_teacher(name, "")
    vit.load_state_dict(module.state_dict())
    return {}


def _take_heads(network: Network, tensors: Mapping[str, Tensor], name: str) -> None:
    own = {key: value for key, value in network.state_dict().items() if key.startswith(HEADS)}
    theirs = {key: value for key, value in tensors.items() if key.startswith(HEADS)}
    unlike = [key for key in own if key not in theirs or theirs[key].shape != own[key].shape]
    if unlike or own.keys() != theirs.keys():
        raise UserError(
            f"{WHAT} {name}: its heads are not of the shape of model.dino_head and model.ibot_head"
            f" ({(unlike or sorted(theirs.keys() - own.keys()))[0]})",
            hint="set model.dino_head and model.ibot_head to what that run has, or name the folder of a"
            " teacher that it exported, whose heads are learnt anew",
        )
    network.load_state_dict({**network.state_dict(), **theirs})


def _digest(state: Mapping[str, Tensor]) -> Tensor:
    sha = hashlib.sha256()
    for name, value in sorted(state.items()):
        sha.update(name.encode())
        sha.update(value.detach().contiguous().numpy().tobytes())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)
