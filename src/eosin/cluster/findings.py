"""What a check of the cluster found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ClusterCheck:
    """`warn`: it may still work; `fail`: it cannot."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""
