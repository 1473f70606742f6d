"""Our gated attention over patches against kaiko-eva's, on the same bags of embeddings, in the same process.

    pip install kaiko-eva==0.4.5     (its core alone, and the one file that holds the network)
    python benchmarks/abmil.py [--num-runs 5] [--num-epochs 30]

Bags of Gaussian patches stand in for slides: a class shows in a few patches of a bag alone. Both take the
same sizes, AdamW, batches of 32 slides, all epochs without patience, and tell the balanced accuracy of the
best epoch on validation. Prints one JSON line.
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from evaluation import eva_fit, summary, timed

from eosin.config.heads import AbmilConfig
from eosin.evaluation.heads.abmil import SlideBags, SlidePart, train_abmil
from eosin.models.arch import define_missing_ops

NUM_CLASSES, DIM = 3, 64
NUM_TRAIN, NUM_VAL = 240, 120
MIN_PATCHES, MAX_PATCHES = 20, 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-runs", type=int, default=5)
    parser.add_argument("--num-epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = AbmilConfig(num_runs=options.num_runs, num_epochs=options.num_epochs, patience_epochs=None)
    bags, classes = make_bags(torch.Generator().manual_seed(0))
    train, val = torch.arange(NUM_TRAIN), torch.arange(NUM_TRAIN, NUM_TRAIN + NUM_VAL)
    ours, ours_s, ours_cpu_s = timed(lambda: our_runs(bags, classes, train, val, config))
    theirs, theirs_s, theirs_cpu_s = timed(
        lambda: [eva_run(bags, classes, train, val, config, run) for run in range(config.num_runs)]
    )
    print(json.dumps({
        "slides": [NUM_TRAIN, NUM_VAL], "dim": DIM, "classes": NUM_CLASSES, **config.model_dump(),
        "eosin": {"balanced_accuracy": summary(ours), "seconds": ours_s, "cpu_seconds": ours_cpu_s},
        "eva": {"balanced_accuracy": summary(theirs), "seconds": theirs_s, "cpu_seconds": theirs_cpu_s},
        "times_faster": theirs_s / ours_s, "times_faster_by_cpu": theirs_cpu_s / ours_cpu_s,
    }))  # fmt: skip


def make_bags(generator: torch.Generator) -> tuple[SlideBags, torch.Tensor]:
    """Bags of both parts, and the class of each, [n]: a tenth of a bag's patches carry its sign."""
    num = NUM_TRAIN + NUM_VAL
    sizes = torch.randint(MIN_PATCHES, MAX_PATCHES + 1, (num,), generator=generator)
    classes = torch.randint(NUM_CLASSES, (num,), generator=generator)
    signs = 0.3 * torch.randn(NUM_CLASSES, DIM, generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    features = torch.randn(int(starts[-1]), DIM, generator=generator)
    for i, size in enumerate(sizes.tolist()):
        start = int(starts[i])
        features[start : start + max(1, size // 10)] += signs[classes[i]]
    return SlideBags(features, starts), classes


def our_runs(
    bags: SlideBags, classes: torch.Tensor, train: torch.Tensor, val: torch.Tensor, config: AbmilConfig
) -> list[float]:
    fitted, judged = (SlidePart(slides, classes[slides]) for slides in (train, val))
    return list(train_abmil(bags, fitted, judged, judged, NUM_CLASSES, config, seed=0).best_score)


def eva_run(
    bags: SlideBags, classes: torch.Tensor, train: torch.Tensor, val: torch.Tensor, config: AbmilConfig,
    run: int,
) -> float:  # fmt: skip
    """One run of eva's network; bags are filled up to one size with what it passes over."""
    network = eva_network()

    def make_head() -> torch.nn.Module:
        head: torch.nn.Module = network(
            input_size=DIM, output_size=NUM_CLASSES, projected_input_size=config.projection_dim,
            hidden_size_attention=config.attention_dim, hidden_sizes_mlp=config.hidden_dims,
        )  # fmt: skip
        return head

    loaders = [loader(bags, classes, slides, config, shuffle=i == 0) for i, slides in enumerate((train, val))]
    return eva_fit(make_head, NUM_CLASSES, config, run, *loaders, max_epochs=config.num_epochs)


def eva_network() -> Any:
    """eva's ABMIL, without the slide readers and viewers that the rest of its vision package asks for."""
    define_missing_ops()
    import eva.core

    source = Path(eva.core.__file__).parents[1] / "vision/models/networks/abmil.py"
    spec = importlib.util.spec_from_file_location("eva_abmil", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ABMIL


def loader(
    bags: SlideBags, classes: torch.Tensor, slides: torch.Tensor, config: AbmilConfig, *, shuffle: bool
) -> Any:
    patches, counts = bags.gather(slides)
    filled = patches.masked_fill(~counts.unsqueeze(-1), -torch.inf)
    samples: Any = [(bag, label, {}) for bag, label in zip(filled, classes[slides], strict=True)]
    return torch.utils.data.DataLoader(samples, batch_size=config.batch_size, shuffle=shuffle)


if __name__ == "__main__":
    main()
