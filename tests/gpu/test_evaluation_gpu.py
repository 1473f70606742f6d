"""Heads on a GPU are those of the CPU, and so are embeddings, tokens and attention."""

import numpy as np
import pytest
import torch

from eosin.config.heads import AbmilConfig, ProbeConfig
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.heads.abmil import SlideBags, SlidePart, train_abmil
from eosin.evaluation.heads.linear import Part, train_probes
from eosin.models.arch import import_timm
from eosin.records import TeacherCard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


def _mixture(seed: int, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (num,), generator=generator)
    return 0.5 * torch.eye(4, 64)[classes] + torch.randn(num, 64, generator=generator) / 8, classes


def test_probes_agree() -> None:
    parts = [_mixture(1, 600), _mixture(2, 300)]
    config = ProbeConfig(num_steps=200, num_runs=3)
    scores = []
    for device in ("cpu", "cuda"):
        train, val = (Part(features.to(device), classes.to(device)) for features, classes in parts)
        scores.append(train_probes(train, val, 4, config, seed=0).best_score)
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_gated_attention_agrees() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(3, 20, (60,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    features = torch.randn(int(sizes.sum()), 32, generator=generator)
    classes = torch.arange(60) % 2
    features[starts[:-1][classes == 1], :2] += 6
    slides = torch.arange(60)
    parts = [SlidePart(slides[a:b], classes[a:b]) for a, b in ((0, 32), (32, 44), (44, 60))]
    config = AbmilConfig(num_epochs=20, num_runs=4, batch_size=8)
    right = []
    for device in ("cpu", "cuda"):
        bags = SlideBags(features.to(device), starts)
        trained = train_abmil(bags, parts[0], parts[1], parts[2], 2, config, seed=0)
        predicted = trained.probabilities.cpu().argmax(dim=-1)
        right.append(float((predicted == parts[2].classes).float().mean()))
    assert right[1] == pytest.approx(right[0], abs=0.1)
    assert right[1] > 0.9


def test_a_backbone_sees_the_same() -> None:
    torch.manual_seed(0)
    args = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    module = import_timm().create_model("vit_tiny_patch16_224", num_classes=0, **args).eval()
    card = TeacherCard(
        name="m", step=None, arch="m", arch_args={}, img_px=64, num_features=64, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), mpp=(), weights_sha256="",
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    on_gpu = Forward(module, card)
    assert on_gpu.device.type == "cuda"
    found = on_gpu(pixels), on_gpu.tokens(pixels), on_gpu.class_attention(pixels)
    on_gpu.device = torch.device("cpu")
    module.cpu()
    on_gpu._mean, on_gpu._std = on_gpu._mean.cpu(), on_gpu._std.cpu()
    expected = on_gpu(pixels), on_gpu.tokens(pixels), on_gpu.class_attention(pixels)
    for gpu, cpu in zip(found, expected, strict=True):
        assert gpu is not None and cpu is not None
        np.testing.assert_allclose(gpu, cpu, rtol=0.02, atol=0.02)
