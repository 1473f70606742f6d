"""Convolutional decoder from frozen patch tokens to classes, trained with Dice loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eosin.config.heads import DecoderConfig
from eosin.evaluation.datasets.masks import IGNORE, Classes
from eosin.evaluation.embeddings.tokens import Tokens
from eosin.metrics.classification import dice
from eosin.records.details import DecoderDescription

DECODER = DecoderDescription(
    name="conv-decoder",
    version=1,
    layers="1×1 to H, ×2, 3×3 to H, ×2, 3×3 to H/2, 1×1 to classes, bilinear to pixels; group norm, ReLU",
    input="patch tokens alone",
    loss="Dice",
    optimizer="AdamW",
)
_SMOOTH = 1e-5


class ConvDecoder(nn.Sequential):
    """Tokens [N, D, h, w] to logits [N, C, 4h, 4w]; `DECODER.layers` says how."""

    def __init__(self, token_dim: int, num_classes: int, hidden_dim: int) -> None:
        half = hidden_dim // 2
        super().__init__(
            *_block(token_dim, hidden_dim, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            *_block(hidden_dim, hidden_dim, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            *_block(hidden_dim, half, 3),
            nn.Conv2d(half, num_classes, 1),
        )


def _block(dim_in: int, dim_out: int, kernel: int) -> list[nn.Module]:
    # Group norm, not batch norm: a tile's prediction must not depend on the tiles beside it.
    return [nn.Conv2d(dim_in, dim_out, kernel, padding=kernel // 2), nn.GroupNorm(4, dim_out), nn.ReLU()]


def dice_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """1 − mean soft Dice of the classes that occur, over the batch together.

    `logits` [N, C, H, W]; `classes` uint8 [N, H, W], of which pixels with `IGNORE` do not count. At
    least one pixel must. Milletari et al. 2016, without squares.
    """
    counted = (classes != IGNORE).unsqueeze(1)
    truth = classes.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    chance = logits.softmax(dim=1) * counted
    size = truth.sum(dim=(0, 2, 3))
    overlap = (chance * truth).sum(dim=(0, 2, 3))
    each = (2 * overlap + _SMOOTH) / (chance.sum(dim=(0, 2, 3)) + size + _SMOOTH)
    return 1 - each[size > 0].mean()


@dataclass(frozen=True)
class SplitTiles:
    """Tiles of one split: `classes` [N, side, side], tokens in `all_tokens` [M, D, h, w] at `places` [N]."""

    all_tokens: Tokens
    places: npt.NDArray[np.int64]
    classes: Classes

    def tokens(self, rows: slice | npt.NDArray[np.int64]) -> Tokens:
        """Of some tiles, copied: the splits share one array, which may be large."""
        return self.all_tokens[self.places[rows]]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder at its best validation; `best_score` is None without validation tiles."""

    decoder: ConvDecoder
    best_step: int
    best_score: float | None
    config: DecoderConfig

    def predict(self, part: SplitTiles) -> Classes:
        """The likeliest class of every pixel, uint8 [N, side, side]."""
        return _predict(self.decoder, part, self.config.batch_size)


def train_decoder(
    train: SplitTiles,
    val: SplitTiles,
    num_classes: int,
    config: DecoderConfig,
    counted: Sequence[int],
    *,
    seed: int,
) -> TrainedDecoder:
    """Train one decoder by AdamW and keep its best by mean Dice of the classes `counted` on `val`.

    Initialisation and order of tiles follow from `seed` alone. Without validation the last is kept.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = ConvDecoder(train.all_tokens.shape[1], num_classes, config.hidden_dim).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    order = _Order(len(train), config.batch_size, np.random.default_rng(seed))
    judged_at = {
        round(config.num_steps * (i + 1) / config.num_validations) for i in range(config.num_validations)
    }
    best, best_step, best_score = decoder, config.num_steps, -1.0
    for step in range(1, config.num_steps + 1):
        rows = order.next()
        optimizer.zero_grad()
        _loss(decoder, train, rows, device).backward()
        optimizer.step()
        if len(val) and step in judged_at:
            predicted = _predict(decoder, val, config.batch_size)
            score = mean_dice(pixel_confusion(val.classes, predicted, num_classes), counted)
            if score > best_score:
                best, best_step, best_score = copy.deepcopy(decoder), step, score
    return TrainedDecoder(best, best_step, best_score if len(val) else None, config)


def _loss(
    decoder: ConvDecoder, part: SplitTiles, rows: npt.NDArray[np.int64], device: torch.device
) -> Tensor:
    classes = torch.from_numpy(part.classes[rows]).to(device)
    return dice_loss(_logits(decoder, part.tokens(rows), classes.shape[-1], device), classes)


def _logits(decoder: ConvDecoder, tokens: Tokens, side_px: int, device: torch.device) -> Tensor:
    logits: Tensor = decoder(torch.from_numpy(tokens).to(device).float())
    return F.interpolate(logits, size=(side_px, side_px), mode="bilinear", align_corners=False)


@torch.inference_mode()
def _predict(decoder: ConvDecoder, part: SplitTiles, batch_size: int) -> Classes:
    device = next(decoder.parameters()).device
    predicted = np.empty_like(part.classes)
    for start in range(0, len(part), batch_size):
        rows = slice(start, start + batch_size)
        logits = _logits(decoder, part.tokens(rows), part.classes.shape[-1], device)
        predicted[rows] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return predicted


class _Order:
    """Batches of tile numbers: every tile once an epoch, in an order drawn anew for each."""

    def __init__(self, num_tiles: int, batch_size: int, random: np.random.Generator) -> None:
        self._num_tiles, self._batch_size, self._random = num_tiles, batch_size, random
        self._left: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def next(self) -> npt.NDArray[np.int64]:
        if not len(self._left):
            self._left = self._random.permutation(self._num_tiles)
        batch, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        return batch


def pixel_confusion(truth: Classes, predicted: Classes, num_classes: int) -> npt.NDArray[np.int64]:
    """Pixel counts [C, C], row the true class; pixels with `IGNORE` do not count. A tile at a time."""
    total = np.zeros(num_classes * num_classes, dtype=np.int64)
    for true, guess in zip(truth, predicted, strict=True):
        kept = true != IGNORE
        pairs = true[kept].astype(np.int64) * num_classes + guess[kept]
        total += np.bincount(pairs, minlength=num_classes * num_classes)
    return total.reshape(num_classes, num_classes)


def mean_dice(confusion: npt.NDArray[np.int64], counted: Sequence[int]) -> float:
    """Mean Dice of those classes of `counted` that occur in truth; 0 where none does."""
    each = dice(confusion)
    there = [value for c in counted if (value := each[c]) is not None and confusion[c].sum()]
    return float(np.mean(there)) if there else 0.0
