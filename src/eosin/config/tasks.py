"""Configuration of a pipeline's pods: what its tasks ask of a cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eosin.config.base import Section
from eosin.config.cluster import TolerationConfig

OptionalQuantity = Annotated[
    str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?)?$", coerce_numbers_to_str=True)
]


class TaskPodConfig(Section):
    """One kind of task, such as evaluate. What is not given is left to the cluster."""

    gpus: int = Field(default=0, ge=0)
    """How many of `gpu_resource` each pod takes; with any, the taint nvidia.com/gpu is tolerated."""
    gpu_resource: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """A whole GPU, a MIG slice or a time slice, as the device plugin names it."""
    cpu: OptionalQuantity = ""
    """Cores requested."""
    memory: OptionalQuantity = ""
    """Requested and limit; includes what lies in /dev/shm."""
    shm_size: OptionalQuantity = ""
    """Size of /dev/shm; empty: the container runtime's, usually 64 MB."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: tuple[TolerationConfig, ...] = ()
    """Taints that the pods put up with."""
