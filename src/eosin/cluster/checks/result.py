"""Result of one check of the cluster."""

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
