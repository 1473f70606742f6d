"""Transfer of tensors from the host to a device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device) -> Tensor:
    """An array or host tensor on `device`.

    By way of pinned memory where that is a GPU: a copy from pageable memory waits for all that the
    device was asked to do before.
    """
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
