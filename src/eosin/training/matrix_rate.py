"""How fast this device multiplies matrices, which utilisation is measured against."""

from __future__ import annotations

import time

import torch

# Square products: large enough to reach the device's rate, milliseconds each.
_GPU_SIDE, _CPU_SIDE = 8192, 512
_GPU_ROUNDS, _CPU_ROUNDS = 10, 3


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of dense square products in `dtype` on `device`, the best of a few; takes about 0.1 s.

    A measured rate, not a data sheet's: an H200 reaches 790 of its 989 bf16 TFLOP/s. On a CPU, of as
    many threads as torch uses in this process.
    """
    is_gpu = device.type == "cuda"
    side = _GPU_SIDE if is_gpu else _CPU_SIDE
    # Random: a GPU multiplies ones or zeros faster than it ever will what is trained on.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    out = torch.empty_like(a)
    times = [_timed(a, b, out, device) for _ in range((_GPU_ROUNDS if is_gpu else _CPU_ROUNDS) + 1)]
    return 2.0 * side**3 / min(times[1:])


def _timed(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began_s = time.perf_counter()
    torch.mm(a, b, out=out)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s
