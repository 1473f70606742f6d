"""Warm starts of training: random weights, a published backbone, or another run's student and teacher."""

from collections.abc import Mapping

from torch import Tensor, nn

from eosin.config import RunConfig
from eosin.errors import PermanentError, UserError
from eosin.models.init import RUN_PREFIX, InitReport, initialize, load_weights
from eosin.models.network import Network, build_network
from eosin.observability import RunLog
from eosin.runs import complete_steps, load_run
from eosin.storage import NotFound, open_store
from eosin.training.checkpoints.checkpoint import load_part
from eosin.training.world import World


def first_networks(config: RunConfig, world: World, log: RunLog) -> tuple[Network, Network | None]:
    """The student, and the teacher where it is not a copy of it, before the first step; on every rank.

    A collective: rank 0 reads `model.init` and reports what became of every tensor, the others get it from
    there. Raises `UserError` where there is nothing to start from or it does not fit.
    """
    init = config.model.init
    if init == "random":
        return build_network(config), None
    networks: list[Network]
    if world.rank == 0:
        networks = _read(config, log)
    else:
        networks = [build_network(config) for _ in range(1 + init.startswith(RUN_PREFIX))]
    for network in networks:
        for value in network.state_dict().values():
            world.broadcast(value)
    return networks[0], networks[1] if len(networks) > 1 else None


def _read(config: RunConfig, log: RunLog) -> list[Network]:
    if not config.model.init.startswith(RUN_PREFIX):
        student = build_network(config)
        report = initialize(student.backbone, config.model.init)
        log.event("init", **report.summary())
        return [student]
    uri = config.model.init.removeprefix(RUN_PREFIX)
    step, parts = newest_state(uri, "model.init")
    networks = []
    for part, tensors in parts.items():
        network = build_network(config)
        report, heads = load_network(network, tensors, f"{config.model.init}, {part} of step {step}")
        log.event("init", **report.summary(), heads=heads)
        networks.append(network)
    return networks


def newest_state(uri: str, what: str) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """Step, student and teacher of the newest checkpoint of the run at `uri` that is whole.

    Raises `UserError`, naming `what` asked for it, where there is none.
    """
    store = open_store(uri)
    digests = load_run(uri, store=store).digests()
    damaged = ""
    for step in sorted(complete_steps(store), reverse=True):
        try:
            return step, {part: load_part(store, step, part, digests) for part in ("student", "teacher")}
        except (NotFound, PermanentError) as error:
            damaged = damaged or f" that is whole: {error}"
    raise UserError(
        f"{what}: the run {uri} has no checkpoint{damaged}",
        hint="a teacher that it exported can be named instead: URI/teachers/NAME"
        + ("/model.safetensors" if what == "model.init" else ""),
    )


def load_network(
    network: Network, tensors: Mapping[str, Tensor], source: str
) -> tuple[InitReport, dict[str, str]]:
    """Load the student or teacher of another run: (report of the backbone, what became of each head).

    Positions and patch embeddings of another size are resampled; a head, adapter or predictor of another
    shape is left as drawn. Raises `UserError` where the backbone does not fit.
    """
    backbone = {
        name.removeprefix("backbone.vit.").removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    report = load_weights(network.backbone, backbone, source)
    heads = {
        name: _load_head(
            head,
            {
                key.removeprefix(f"{name}."): value
                for key, value in tensors.items()
                if key.startswith(f"{name}.")
            },
        )
        for name, head in network.submodules().items()
        if name != "backbone"
    }
    return report, heads


def _load_head(head: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    own = head.state_dict()
    if not tensors:
        return "missing: as randomly drawn"
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        return "of another shape: as randomly drawn"
    head.load_state_dict(dict(tensors))
    return "loaded"
