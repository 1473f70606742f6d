"""Convolutional decoders from frozen patch tokens to classes, trained with Dice loss: eva's, and our own."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eosin.config.heads import DecoderConfig
from eosin.evaluation.datasets.masks import IGNORE, Classes
from eosin.evaluation.embeddings.tokens import TileTokens, Tokens
from eosin.evaluation.heads.runs import lr_of_epoch
from eosin.metrics.classification import dice
from eosin.records.details import DecoderDescription

_described = partial(
    DecoderDescription, version=1, input="patch tokens alone", loss="Dice (MONAI, softmax, over the batch)",
    optimizer="AdamW",
)  # fmt: skip
DECODERS = {
    "conv-decoder": _described(
        name="conv-decoder",
        layers="1×1 to H, ×2, 3×3 to H, ×2, 3×3 to H/2, 1×1 to classes, bilinear to pixels; group norm, ReLU",
        loss="Dice",
    ),
    "eva-with-image": _described(
        name="ConvDecoderWithImage (kaiko-eva 0.4.5)",
        layers="×2, 3×3 to 64, bilinear to pixels, image beside, twice 3×3 to 32, 1×1; batch norm, ReLU",
        input="patch tokens and the image",
    ),
    "eva-multi-stage": _described(
        name="ConvDecoderMS (kaiko-eva 0.4.5)",
        layers="×2, 3×3 to 64, ×2, 3×3 to classes, bilinear to pixels",
    ),
}
_SMOOTH = 1e-5


class ConvDecoder(nn.Sequential):
    """Tokens [N, D, h, w] to logits [N, C, 4h, 4w]; `DECODERS` says how."""

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


class EvaDecoder(nn.Module):
    """Tokens [N, D, h, w], and images [N, 3, H, W] where it has them beside, to logits [N, C, H, W]."""

    def __init__(self, token_dim: int, num_classes: int, *, with_image: bool) -> None:
        super().__init__()
        self.with_image = with_image
        if with_image:
            self.layers = nn.Sequential(nn.Upsample(scale_factor=2), _batch_normed(token_dim, 64))
            self.image_block = nn.Sequential(_batch_normed(64 + 3, 32), _batch_normed(32, 32))
            self.classifier = nn.Conv2d(32, num_classes, kernel_size=1)
        else:
            self.layers = nn.Sequential(
                nn.Upsample(scale_factor=2), nn.Conv2d(token_dim, 64, 3, padding=1),
                nn.Upsample(scale_factor=2), nn.Conv2d(64, num_classes, 3, padding=1),
            )  # fmt: skip

    def forward(self, tokens: Tensor, images: Tensor | None, side_px: int) -> Tensor:
        """Logits at `side_px`; `images` are normalised as the backbone's."""
        found: Tensor = F.interpolate(self.layers(tokens), size=(side_px, side_px), mode="bilinear")
        if self.with_image:
            assert images is not None
            found = self.classifier(self.image_block(torch.cat([found, images], dim=1)))
        return found


def _batch_normed(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim_in, dim_out, 3, padding=1), nn.BatchNorm2d(dim_out), nn.ReLU())


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


def eva_dice_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """The same as eva takes it from MONAI: the mean is over all classes, whether they occur or not.

    Where a pixel is ignored its logits and its class are 0, as eva's `ignore_index` has it.
    """
    counted = classes != IGNORE
    truth = F.one_hot((classes * counted).long(), logits.shape[1]).movedim(-1, 1)
    chance = (logits * counted.unsqueeze(1)).softmax(dim=1)
    overlap = (chance * truth).sum(dim=(0, 2, 3))
    whole = chance.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    return (1 - (2 * overlap + _SMOOTH) / (whole + _SMOOTH)).mean()


@dataclass(frozen=True)
class SplitTiles:
    """Tiles of one split: those at `places` [N] of `found`; the splits share its arrays."""

    found: TileTokens
    places: npt.NDArray[np.int64]

    @property
    def classes(self) -> Classes:
        """uint8 [N, side, side]."""
        return self.found.classes[self.places]

    def tokens(self, rows: slice | npt.NDArray[np.int64]) -> Tokens:
        """Of some tiles, copied."""
        return self.found.tokens[self.places[rows]]

    def images(self, rows: slice | npt.NDArray[np.int64], device: torch.device) -> Tensor | None:
        """Of some tiles, normalised, float [n, 3, side, side]; None where they were not kept."""
        if self.found.images is None:
            return None
        mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in self.found.normalisation)
        pixels = torch.from_numpy(self.found.images[self.places[rows]]).to(device).permute(0, 3, 1, 2)
        return (pixels.to(mean.dtype) / 255 - mean) / std

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder at its best validation; `best_score` is None without validation tiles."""

    decoder: nn.Module
    best_step: int
    best_score: float | None
    config: DecoderConfig

    def predict(self, part: SplitTiles) -> Classes:
        """The likeliest class of every pixel, uint8 [N, side, side]."""
        return _predict(self.decoder, part, self.config.batch_size)


@dataclass(frozen=True)
class DecoderDraws:
    """Where a decoder begins, and its order of tiles [n] in each epoch."""

    initial: dict[str, Tensor]
    orders: Iterable[npt.NDArray[np.int64]]


def train_decoder(
    train: SplitTiles,
    val: SplitTiles,
    num_classes: int,
    config: DecoderConfig,
    counted: Sequence[int],
    *,
    seed: int,
    draws: DecoderDraws | None = None,
) -> TrainedDecoder:
    """Train one decoder by AdamW and keep its first best by Dice of the classes `counted` on `val`.

    One of eva's is trained and chosen as eva does: its loss, a look at validation after each epoch, its Dice.
    Initialisation and order of tiles follow from `seed` alone, or from `draws`. Without validation the last
    is kept.
    """
    device, is_eva = torch.device("cuda" if torch.cuda.is_available() else "cpu"), config.is_eva
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = _made(train.found.tokens.shape[1], num_classes, config).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if draws:
        decoder.load_state_dict(draws.initial)
    orders = draws.orders if draws else _orders(len(train), seed)
    batches = (
        rows
        for order in orders
        for rows in np.split(order, range(config.batch_size, len(order), config.batch_size))
    )
    per_epoch, truth = math.ceil(len(train) / config.batch_size), val.classes
    looks = set(range(per_epoch, config.num_steps + 1, per_epoch)) or {config.num_steps}
    if not is_eva:
        looks = {
            round(config.num_steps * (i + 1) / config.num_validations) for i in range(config.num_validations)
        }
    best, best_step, best_score, num_worse = decoder, config.num_steps, -1.0, 0
    for step in range(1, config.num_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr_of_epoch(config.lr, (step - 1) // per_epoch, config.low_lr_epochs)
        rows = next(batches)
        optimizer.zero_grad()
        classes = torch.from_numpy(train.found.classes[train.places[rows]]).to(device)
        logits = _logits(decoder.train(), train, rows, device)
        (eva_dice_loss if is_eva else dice_loss)(logits, classes).backward()
        optimizer.step()
        if not len(val) or step not in looks:
            continue
        predicted = _predict(decoder, val, config.batch_size)
        if is_eva:
            score = mean_tile_dice(truth, predicted, counted)
        else:
            score = mean_dice(pixel_confusion(truth, predicted, num_classes), counted)
        num_worse += 1
        if score > best_score:
            best, best_step, best_score, num_worse = copy.deepcopy(decoder), step, score, 0
        if config.patience_epochs is not None and num_worse >= config.patience_epochs:
            break
    return TrainedDecoder(best, best_step, best_score if len(val) else None, config)


def _made(token_dim: int, num_classes: int, config: DecoderConfig) -> nn.Module:
    if config.is_eva:
        return EvaDecoder(token_dim, num_classes, with_image=config.name == "eva-with-image")
    return ConvDecoder(token_dim, num_classes, config.hidden_dim)


def _logits(
    decoder: nn.Module, part: SplitTiles, rows: slice | npt.NDArray[np.int64], device: torch.device
) -> Tensor:
    tokens = torch.from_numpy(part.tokens(rows)).to(device, torch.get_default_dtype())
    side_px = part.found.classes.shape[-1]
    if isinstance(decoder, EvaDecoder):
        images = part.images(rows, device) if decoder.with_image else None
        logits: Tensor = decoder(tokens, images, side_px)
        return logits
    return F.interpolate(decoder(tokens), size=(side_px, side_px), mode="bilinear", align_corners=False)


@torch.inference_mode()
def _predict(decoder: nn.Module, part: SplitTiles, batch_size: int) -> Classes:
    device = next(decoder.parameters()).device
    decoder.eval()
    predicted = np.empty((len(part), *part.found.classes.shape[1:]), dtype=np.uint8)
    for start in range(0, len(part), batch_size):
        rows = slice(start, start + batch_size)
        logits = _logits(decoder, part, rows, device)
        predicted[rows] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return predicted


def _orders(num_tiles: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    while True:
        yield random.permutation(num_tiles)


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


def tile_dice(truth: Classes, predicted: Classes, counted: Sequence[int]) -> npt.NDArray[np.float64]:
    """Of each tile [N], the mean Dice of those of `counted` that it shows; nan where it shows none.

    As MONAI's `DiceMetric` with `ignore_empty`, which eva reports; `IGNORE` counts for neither side.
    """
    kept = truth != IGNORE
    scores = np.full((len(truth), len(counted)), np.nan)
    for i, c in enumerate(counted):
        true, guess = truth == c, (predicted == c) & kept
        size = true.sum(axis=(1, 2))
        overlap = 2.0 * (true & guess).sum(axis=(1, 2))
        both = size + guess.sum(axis=(1, 2))
        scores[:, i] = np.where(size > 0, overlap / np.maximum(both, 1), np.nan)
    shown = np.isfinite(scores)
    total = np.where(shown, scores, 0).sum(axis=1)
    return np.where(shown.any(axis=1), total / np.maximum(shown.sum(axis=1), 1), np.nan)


def mean_tile_dice(truth: Classes, predicted: Classes, counted: Sequence[int]) -> float:
    """Over the tiles that show a class of `counted`; 0 where none does."""
    each = tile_dice(truth, predicted, counted)
    return float(np.nanmean(each)) if np.isfinite(each).any() else 0.0
