"""The world of ranks: which microbatches each owns, and collectives over all of them.

The batch is cut into a fixed number of microbatches; ranks own consecutive ones, in uneven shares where they
must. Whatever crosses samples is a sum or a maximum over microbatches, taken here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def share_of(rank: int, world_size: int, num_microbatches: int) -> range:
    """Microbatches of `rank`: consecutive, shares differing by at most one (8 on 3 ranks: 3, 3, 2)."""
    each, extra = divmod(num_microbatches, world_size)
    start = rank * each + min(rank, extra)
    return range(start, start + each + (rank < extra))


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among `size`. With `deterministic`, sums run in one order whatever the world size."""

    num_microbatches: int
    rank: int = 0
    size: int = 1
    deterministic: bool = False
    device: torch.device = _CPU
    shares: list[int] = field(default_factory=list)
    """How many microbatches each rank holds; empty: as even as may be. All ranks change it together."""

    @property
    def own_microbatches(self) -> range:
        """Indices of the microbatches of this rank."""
        return self.microbatches_of(self.rank)

    @property
    def num_passes(self) -> int:
        """Microbatches of the largest share."""
        return max(len(self.microbatches_of(rank)) for rank in range(self.size))

    def microbatches_of(self, rank: int) -> range:
        """Microbatches that `rank` holds now: consecutive, in order of rank."""
        if not self.shares:
            return share_of(rank, self.size, self.num_microbatches)
        start = sum(self.shares[:rank])
        return range(start, start + self.shares[rank])

    def sum_over_microbatches(self, parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
        """Σ over all microbatches of the tensors in `parts` (this rank's own), shaped as `like`."""
        if self.deterministic:
            return self._sum_in_microbatch_order(parts, like)
        total = torch.zeros_like(like)
        for microbatch in sorted(parts):
            total += parts[microbatch]
        return self.all_reduce(total)

    def max_over_microbatches(self, parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
        """Element-wise maximum over all microbatches; exact in any order."""
        largest = torch.full_like(like, -torch.inf)
        for part in parts.values():
            largest = torch.maximum(largest, part)
        if self.size > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_json(self, value: Any) -> list[Any]:
        """`value` of every rank, by rank. JSON, since what comes over a network is never unpickled."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)], dtype=torch.int64, device=self.device))
        padded = torch.zeros(max(map(int, lengths)), dtype=torch.uint8, device=self.device)
        padded[: len(own)] = own
        texts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(texts, padded)
        pairs = zip(texts, lengths, strict=True)
        return [json.loads(bytes(text[: int(length)].tolist())) for text, length in pairs]

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """`tensor` of rank `source` on every rank, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=source)
        return tensor

    def _sum_in_microbatch_order(self, parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
        total = torch.zeros_like(like)
        for rank in range(self.size):
            for microbatch in self.microbatches_of(rank):
                part = parts[microbatch].contiguous().clone() if rank == self.rank else torch.empty_like(like)
                total += self.broadcast(part, rank)
        return total
