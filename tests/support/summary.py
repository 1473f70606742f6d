"""A run as the steps before summarize leave it, without running any of them."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from eosin.config import RunConfig, dump_config
from eosin.index.rows import SlideRow, encode_rows
from eosin.index.tissue_mask import TissueMask
from eosin.layout import RANDOM_INIT, IndexLayout, RunLayout, model_name, record_key
from eosin.records import IndexPin, MetricRecord, MetricValue, SnapshotManifest, TeacherCard, TrainingDone
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import Store, open_store
from tests.support.evaluation import patch_rows, write_patch_set

HOSTILE = "<script>alert('x')</script> & \"quotes\" ‮.svs"
CLASSES = ("dense", "sparse", "gland")
STEPS = (100, 200, 300)
TASKS: list[dict[str, Any]] = [
    {"kind": "unsupervised", "name": "heldout"},
    {"kind": "knn", "name": "textures-knn", "dataset": "s3://bucket/labelled"},
    {"kind": "linear-probe", "name": "textures-linear", "dataset": "s3://bucket/labelled"},
]


def fake_run(folder: Path, **evaluate: Any) -> str:
    """A finished run of three checkpoints; every part a test may then take away or spoil."""
    uri = f"file://{folder}/runs/demo"
    config = RunConfig.model_validate(
        {
            "recipe": "none-packaged",
            "slides": {"uri": "s3://bucket/slides"},
            "index": {"uri": f"file://{folder}/index"},
            "evaluate": {"tasks": TASKS, **evaluate},
        }
    )
    store = open_store(uri)
    store.put(RunLayout.CONFIG, dump_config(config).encode())
    write_index(store, f"file://{folder}/index", slide_rows())
    write_training(store, config)
    write_log(store)
    write_records(store)
    write_patch_set(folder / "runs/demo/patches/heldout", patch_rows(num_patients=2, label=""))
    store.put(
        RunLayout.patch_set("heldout") + "contact-sheet.jpg", jpeg(Image.new("RGB", (640, 200), "pink"))
    )
    return uri


def slide_rows() -> list[SlideRow]:
    rows = [
        slide_row(f"cohort/slide {i:02d}.svs", mpp=0.25 if i % 3 else 0.5, patient=f"p{i}") for i in range(7)
    ]
    rows.append(slide_row(HOSTILE, mpp=0.25))
    rows.append(slide_row("TCGA.svs", status="no-mpp", detail="the header has no mpp", mpp=None))
    rows.append(slide_row("empty.svs", status="empty-file", detail="0 bytes", mpp=None))
    rows.append(slide_row("<b>.svs", status="brand-new-reason", detail="<i>so & so</i>", mpp=None))
    return rows


def slide_row(
    slide: str, *, status: str = "ok", detail: str = "", mpp: float | None, patient: str = ""
) -> SlideRow:
    level = Level(4096, 3072, 1.0, 240, 240, "jpeg", "ycbcr", 0)
    header = SlideHeader((SlideObject(slide, "etag", 1000),), "aperio", "svs", (level,), mpp, mpp)
    y, x = np.mgrid[:96, :128]
    mask = ((x - 64) / 40) ** 2 + ((y - 48) / 30) ** 2 < 1
    ok = status == "ok"
    return SlideRow(
        slide=slide, status=status, detail=detail, header=header, mpp_source="header" if mpp else "",
        tissue=TissueMask.from_array(mask, 32.0, 32.0) if ok else None, tissue_mm2=3.2 if ok else 0.0,
        patient=patient, digest=hashlib.sha256(slide.encode()).hexdigest(), has_thumbnail=ok,
    )  # fmt: skip


def write_index(run: Store, index_uri: str, rows: Sequence[SlideRow]) -> None:
    store = open_store(index_uri)
    data = encode_rows(rows)
    manifest = SnapshotManifest(
        snapshot_id="0123456789abcdef", rows_sha256=hashlib.sha256(data).hexdigest(),
        slides_uri="s3://bucket/slides", indexer_version=1, num_slides=len(rows),
        num_ok=sum(row.status == "ok" for row in rows), tissue_mm2=sum(row.tissue_mm2 for row in rows),
    )  # fmt: skip
    store.put(IndexLayout.snapshot_rows(manifest.snapshot_id), data)
    store.put(IndexLayout.snapshot_marker(manifest.snapshot_id), manifest.to_json())
    for row in rows:
        if row.has_thumbnail:
            store.put(IndexLayout.tiles(row.digest), bytes(row.table_bytes) + jpeg(thumbnail()))
    pin = IndexPin(index_uri=index_uri, snapshot_id=manifest.snapshot_id)
    run.put(RunLayout.INDEX_PIN, pin.to_json())


def thumbnail() -> Image.Image:
    picture = Image.new("RGB", (256, 192), (240, 238, 242))
    ImageDraw.Draw(picture).ellipse((50, 38, 206, 154), fill=(196, 110, 170))
    return picture


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def write_training(store: Store, config: RunConfig) -> None:
    for step in STEPS:
        weights = f"weights of step {step}".encode()
        digest = hashlib.sha256(weights).hexdigest()
        card = TeacherCard(
            name=model_name(step), step=step, arch="vit", arch_args={}, img_px=64, num_features=128,
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), mpp=(0.5,), weights_sha256=digest,
        )  # fmt: skip
        store.put(RunLayout.teacher_weights(card.name), weights)
        store.put(RunLayout.teacher_card(card.name), card.to_json())
    done = TrainingDone(
        num_steps=STEPS[-1], models=tuple(map(model_name, STEPS)), snapshot_id="0123456789abcdef",
        config_digest=config.digest(), wall_s=100.0, final_loss=6.1,
    )  # fmt: skip
    store.put(RunLayout.TRAINING_DONE, done.to_json())


def write_log(store: Store) -> None:
    """300 steps with two workers, then one, then two again; 20 steps replayed after the loss."""
    lines = []
    seconds = 0.0
    steps = [*range(10, 161, 10), *range(140, 301, 10)]
    for number, step in enumerate(steps):
        seconds += 3.0
        world = 1 if 16 <= number < 22 else 2
        fields = {
            "step": step, "num_steps": 300, "loss": 6.9 - step / 400, "dino": 4.1 - step / 500,
            "ibot": 2.7 - step / 2000, "koleo": 0.1, "lr": 1e-3 * min(1, step / 60), "world_size": world,
            "patches_per_s": 90.0 * world + step % 7, "data_wait_share": 0.1, "grad_norm": 1.0,
            "rankme": 3 + step / 10, "teacher_entropy": 5.0, "mfu": 0.01 * world, "memory_gib": 1.5,
        }  # fmt: skip
        lines.append(_line(seconds, "step", **fields))
        if number in (0, 16, 22):
            lines.append(_line(seconds, "world", world_size=world, start_step=step - 10, device="cpu"))
    lines.append(_line(seconds, "checkpoint", step=300, mib=3.5, seconds=0.2))
    lines.append('{"time": "2026-01-01T00:00:00+00:00", "source": "train", "event": "st')
    store.put(RunLayout.log("train", "20260101T000000"), "\n".join(lines).encode())
    own = _line(9_999.0, "report", uri="x").replace('"train"', '"summarize"')
    store.put(RunLayout.log("summarize", "20260101T010000"), own.encode())


def _line(seconds: float, event: str, /, **fields: Any) -> str:
    stamp = f"2026-01-01T00:{int(seconds // 60):02d}:{seconds % 60:06.3f}+00:00"
    if seconds >= 3600:
        stamp = "2026-01-01T05:00:00.000+00:00"
    return json.dumps({"time": stamp, "source": "train", "event": event, **fields})


def record(model: str, step: int | None, task: dict[str, Any], quality: float, **fields: Any) -> MetricRecord:
    """A record as evaluation writes it; `quality` 0 is chance, 1 perfect."""
    kind = task["kind"]
    common = {
        "model": model, "step": step, "task": task["name"], "kind": kind, "status": "ok",
        "dataset": task.get("dataset", "run/patches/heldout"), "dataset_digest": "d" * 64, "num_patches": 90,
        "protocol": f"{kind}-protocol", "eosin_version": "0.1.0", "inputs_digest": "i" * 64,
    }  # fmt: skip
    if kind == "unsupervised":
        common["metrics"] = {
            "rankme": MetricValue.of([3 + 45 * quality]),
            "odcorr": MetricValue.of([0.6 - 0.4 * quality], higher_is_better=False),
        }
        relative = [float(10 ** (-(rank - 1) * (1.2 - quality) / 20)) for rank in range(1, 41)]
        common["details"] = {
            "num_samples": 90, "num_features": 128, "constant_features": 0, "notes": [],
            "spectrum": {"rank": list(range(1, 41)), "relative": relative, "alpha": 1.1},
            "by_mpp": {"0.5": {"num_samples": 45, "rankme": 20.0, "odcorr": 0.2}, "1": {"num_samples": 45}},
        }  # fmt: skip
    else:
        runs = 5 if kind == "linear-probe" else 1
        truth = [i % 3 for i in range(90)]
        generator = np.random.default_rng(int(quality * 100) + runs)
        right = generator.random(90) < 0.3 + 0.6 * quality
        predicted = [t if ok else (t + 1) % 3 for t, ok in zip(truth, right, strict=True)]
        confusion = np.zeros((3, 3), dtype=int)
        np.add.at(confusion, (truth, predicted), runs)
        share = float(np.trace(confusion) / confusion.sum())
        values = [share + 0.01 * (i - runs // 2) for i in range(runs)]
        common["metrics"] = {"balanced_accuracy": MetricValue.of(values), "top1": MetricValue.of(values)}
        common["details"] = {
            "classes": list(CLASSES), "class_counts": dict.fromkeys(CLASSES, 30),
            "confusion": confusion.tolist(),
            "recall": dict.fromkeys(CLASSES, share),
            "intervals": {"balanced_accuracy": [share - 0.08, share + 0.08]}, "interval_over": "6 patients",
            "num_train": 200, "num_val": 50, "num_judged": 90, "judged_on": "test", "truth": truth,
            "predicted": predicted, "patients": [f"p{i % 6}" for i in range(90)], "transform": "resize v1",
            "num_dropped": 1, "dropped": [{"source": HOSTILE, "reason": "damaged"}], "notes": ["a <note>"],
        }  # fmt: skip
    return MetricRecord.model_validate({**common, **fields})


def write_records(store: Store) -> None:
    for model, step in ((RANDOM_INIT, 0), *((model_name(step), step) for step in STEPS)):
        for task in TASKS:
            put_record(store, record(model, step, task, step / 400))


def put_record(store: Store, each: MetricRecord, key: str | None = None) -> None:
    store.put(key or RunLayout.metric(record_key(each.model), each.task), each.to_json())


def report_file(run_uri: str, key: str) -> str:
    return open_store(run_uri).get(key).decode()
