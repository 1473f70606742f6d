"""Work for a device: functions compiled whole, and copies that nothing waits for."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eosin.errors import UserError

# Shapes are few and fixed by the configuration (crop sizes, last chunks, with and without gradients), but
# more than torch's 8 where several networks are trained in one process.
_MOST_VERSIONS = 64


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` compiled as one graph; anything that would break the graph is an error, not a slow path."""
    # Importing torch alone does not load it.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VERSIONS)
    return torch.compile(function, fullgraph=True, dynamic=False, **options)


def require_compiler() -> None:
    """Raise `UserError` where there is no C++ compiler, which torch.compile needs on any device."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++")):
        raise UserError(
            "train.compile needs a C++ compiler, and there is none on the path",
            hint="install g++, or set train.compile=false: slower, the same result",
        )


def to_device(values: Any, device: torch.device) -> Tensor:
    """An array or host tensor on `device`.

    By way of pinned memory where that is a GPU: a copy from pageable memory waits for all that the
    device was asked to do before.
    """
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
