"""Pictures of neighbours and token maps: the right ones, small, and never a reason to fail."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eosin.evaluation import pictures
from eosin.evaluation.datasets.dataset import Dataset, MissingImage, Sample
from eosin.evaluation.embeddings.embed import Embeddings
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.evaluate import evaluate
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.pictures import map_examples, neighbour_examples
from eosin.models.arch import import_timm
from eosin.records import TeacherCard
from eosin.storage import open_store
from tests.support.evaluation import (
    encoded,
    image,
    make_config,
    make_run,
    patch_rows,
    quiet_log,
    write_folder,
    write_patch_set,
)

GREEN, ORANGE = (0, 158, 115), (213, 94, 0)


def _dataset(labels: list[str], patients: list[str] | None = None) -> Dataset:
    shades = [encoded(image((20 * i, 0, 0), i)) for i in range(len(labels))]
    samples = tuple(
        Sample(f"{i}.png", label, patient=patients[i] if patients else "") for i, label in enumerate(labels)
    )
    return Dataset("memory", "d", samples, lambda rows: [shades[i] for i in rows])


def _embeddings(angles: list[float]) -> Embeddings:
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Embeddings(features, np.arange(len(angles)), 0, ())


def _cells(jpeg: bytes) -> np.ndarray:  # type: ignore[type-arg]
    """[rows, columns, 3]: the mean colour of the inside of each cell."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(float)
    step, inside = pictures.CELL_PX + 6, slice(20, pictures.CELL_PX - 20)
    rows, columns = range(0, pixels.shape[0], step), range(0, pixels.shape[1], step)
    cells = [[pixels[y : y + step, x : x + step][inside, inside] for x in columns] for y in rows]
    return np.array([[cell.mean(axis=(0, 1)) for cell in row] for row in cells])


def _borders(jpeg: bytes, row: int) -> list[tuple[int, int, int] | None]:
    picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
    step = pictures.CELL_PX + 6
    pixels = np.asarray(picture).astype(float)[row * step + 1, 40::step]
    known = np.array([GREEN, ORANGE, (255, 255, 255)], dtype=float)
    distance = np.abs(pixels[:, None] - known).sum(axis=2)
    return [(GREEN, ORANGE, None)[i] for i in distance.argmin(axis=1)]


def test_neighbours_are_the_nearest_in_order_and_framed_by_class() -> None:
    dataset = _dataset(["a", "a", "b", "a", "b", "b", "b"])
    found = neighbour_examples(dataset, _embeddings([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), [0], range(7))
    assert found is not None and "green" in found.caption
    reds = _cells(found.jpeg)[0, :, 0]
    # The query has the first shade, its neighbours the next five: each lighter than the one before.
    assert len(reds) == 6 and (np.diff(reds) > 5).all()
    assert _borders(found.jpeg, 0)[1:] == [GREEN, ORANGE, GREEN, ORANGE, ORANGE]


def test_patches_of_the_same_patient_are_no_neighbours() -> None:
    dataset = _dataset(["a"] * 4, patients=["p", "p", "q", "q"])
    found = neighbour_examples(dataset, _embeddings([0, 0.01, 0.5, 0.6]), [0], range(4))
    assert found is not None
    assert _cells(found.jpeg).shape[1] == 3


def test_an_image_that_has_gone_is_left_out() -> None:
    whole = _dataset(["a"] * 4)
    gone = Dataset("memory", "d", whole.samples, lambda rows: [MissingImage("gone")] * len(rows))
    assert neighbour_examples(gone, _embeddings([0, 1, 2, 3]), range(4), range(4)) is None
    alone = Embeddings(np.ones((1, 2), np.float32), np.arange(1), 0, ())
    assert neighbour_examples(whole, alone, [0], [0]) is None


def test_a_sheet_never_outgrows_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    full = pictures.sheet([[noise] * 6] * 6)
    monkeypatch.setattr(pictures, "MAX_BYTES", 9_000)
    small = pictures.sheet([[noise] * 6] * 6)
    assert len(small) <= 9_000 < len(full) <= 300_000
    Image.open(io.BytesIO(small)).load()


def _subject(arch: str, img_px: int = 32, **args: object) -> JudgedModel:
    torch.manual_seed(0)
    module = import_timm().create_model(arch, num_classes=0, **args).eval()
    card = TeacherCard(
        name="m", step=None, arch=arch, arch_args={}, img_px=img_px, num_features=int(module.num_features),
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), mpp=(), weights_sha256="",
    )  # fmt: skip
    return JudgedModel("m", None, "d", lambda: (module, card))


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("num_registers", [0, 3])
def test_attention_is_what_the_block_itself_computes(num_registers: int) -> None:
    subject = _subject("vit_tiny_patch16_224", reg_tokens=num_registers, **VIT)
    module, card = subject.load()
    attention = module.blocks[-1].attn  # type: ignore[union-attr, index]
    attention.fused_attn = False
    seen: list[torch.Tensor] = []
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = Forward(module, card).class_attention(pixels)
    hook.remove()
    assert found is not None
    prefix = 1 + num_registers
    expected = seen[0][:, :, 0, prefix:].mean(dim=1)
    expected = (expected / expected.sum(dim=1, keepdim=True)).reshape(3, 4, 4)
    np.testing.assert_allclose(found, expected.detach().cpu().numpy(), rtol=1e-4, atol=1e-6)
    assert found.sum(axis=(1, 2)) == pytest.approx(1.0, rel=1e-5)


def test_maps_show_patch_components_and_attention() -> None:
    dataset, embeddings = _dataset(["a"] * 8), _embeddings([0.1 * i for i in range(8)])
    found = map_examples(dataset, embeddings, _subject("vit_tiny_patch16_224", **VIT))
    assert found is not None and "attention" not in found.caption
    assert "class token" in found.caption
    assert _cells(found.jpeg).shape[:2] == (6, 3)


def test_a_convolutional_network_has_components_and_no_attention() -> None:
    dataset, embeddings = _dataset(["a"] * 3), _embeddings([0, 1, 2])
    found = map_examples(dataset, embeddings, _subject("resnet18", img_px=64))
    assert found is not None
    assert _cells(found.jpeg).shape[:2] == (3, 2)


def test_records_name_pictures_that_are_there(tmp_path: Path) -> None:
    labelled = write_folder(tmp_path / "set", {"": {"red": 10, "blue": 10}})
    heldout = write_patch_set(tmp_path / "heldout", patch_rows())
    tasks = [
        {"kind": "knn", "name": "knn", "dataset": labelled},
        {"kind": "unsupervised", "name": "heldout", "patch_set": heldout},
    ]
    run = make_run(tmp_path, make_config(tasks))
    kinds = {}
    for task in ("knn", "heldout"):
        record = evaluate(run, "random-init", task, log=quiet_log())
        assert record.status == "ok", record.reason
        kinds[task] = [each.kind for each in record.details.examples]
        for each in record.details.examples:
            data = open_store(run).get(each.key)
            assert data[:2] == b"\xff\xd8" and len(data) <= pictures.MAX_BYTES
    assert kinds == {"knn": ["neighbours"], "heldout": ["neighbours", "maps"]}
