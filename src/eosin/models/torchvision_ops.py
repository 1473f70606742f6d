"""Let timm be imported beside a torch that the installed torchvision was not compiled for.

torchvision's wheel from PyPI is a CUDA build. Beside a CPU build of torch its C++ library does not
load, and `import torchvision` then fails while it registers fake kernels for operators that were
never defined. eosin calls none of those operators, so defining their schemas is enough.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []


@functools.cache
def define_missing_ops() -> bool:
    """Define the schemas of `torchvision::nms` and `qnms` where torchvision's own are missing.

    Call it before `import timm`. Returns whether anything had to be defined; torchvision's own
    operators are left alone where its library loads.
    """
    if importlib.util.find_spec("torchvision") is None or _own_ops_load():
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}{_NMS}")
    _libraries.append(library)  # an operator lives as long as its Library object
    return True


def _own_ops_load() -> bool:
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations or [] if spec else []
    binaries = [path for folder in folders for path in Path(folder).glob("_C*.so")]
    for binary in binaries:
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            continue
    return hasattr(torch.ops.torchvision, "nms")
