"""Teachers handed over to folders and to a hub, and loaded from there by timm alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from eosin.cli.app import app
from eosin.errors import UserError
from eosin.layout import IndexLayout, RunLayout
from eosin.models.arch import import_timm
from eosin.models.export import export_teacher
from eosin.models.hand_over import hand_over
from eosin.models.network import build_network
from eosin.records import IndexPin, MetricRecord, MetricValue, SnapshotManifest
from eosin.runs import pin_index
from eosin.storage import open_store
from tests.support.training_run import begin, tiny_config

NAME, SNAPSHOT = "step-00000020", "0" * 16


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with one teacher, judged on one task, of an index of two slides."""
    uri, index = f"file://{tmp_path}/run", f"file://{tmp_path}/index"
    manifest = SnapshotManifest(snapshot_id=SNAPSHOT, rows_sha256="", slides_uri="s3://secret/slides",
                                indexer_version=1, num_slides=3, num_ok=2, tissue_mm2=1234.4)  # fmt: skip
    open_store(index).put(IndexLayout.snapshot_marker(SNAPSHOT), manifest.to_json())
    config = tiny_config()
    config = begin(uri, config.model_copy(update={"index": config.index.model_copy(update={"uri": index})}))
    pin_index(uri, IndexPin(index_uri=index, snapshot_id=SNAPSHOT))
    store = open_store(uri)
    backbone = build_network(config).backbone
    export_teacher(store, NAME, backbone, config=config, step=20, snapshot_id=SNAPSHOT)
    for model, mean in ((NAME, 0.75), ("random-init", 0.25)):
        details = {"intervals": {"balanced_accuracy": [mean - 0.1, mean + 0.1]}}
        metrics = {"balanced_accuracy": MetricValue.of([mean])}
        record = MetricRecord(model=model, step=0, task="bach", kind="knn", status="ok", metrics=metrics,
                              details=details)  # type: ignore[arg-type]  # fmt: skip
        store.put(RunLayout.metric(model, "bach"), record.to_json())
    return uri


def features_of(folder: Path) -> torch.Tensor:
    model = import_timm().create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model(torch.ones(1, 3, 16, 16))  # type: ignore[no-any-return]


def test_a_folder_has_a_card_of_data_and_figures_and_timm_loads_it(run: str, tmp_path: Path) -> None:
    to = tmp_path / "mine"
    for _ in range(2):  # doing it again changes nothing
        result = CliRunner().invoke(app, ["export", run, "--to", str(to), "--licence", "cc-by-4.0", "--json"])
        assert result.exit_code == 0, result.output
    teacher = tmp_path / "run" / "teachers" / NAME
    assert (to / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    card = (to / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert "2 whole-slide images with 1,234 mm² of tissue" in card and "secret" not in card
    assert "| bach | balanced_accuracy | 0.750 | 0.650 – 0.850 | 0.250 |" in card
    assert str(tmp_path) not in card
    backbone = build_network(tiny_config()).backbone.eval()
    with torch.no_grad():
        ours = backbone(torch.ones(1, 3, 16, 16))[:, 0]
    torch.testing.assert_close(features_of(to), ours)


def test_another_teachers_folder_is_not_overwritten(run: str, tmp_path: Path) -> None:
    hand_over(f"{run}/teachers/{NAME}", str(tmp_path / "mine"))
    other = tiny_config().model_copy(update={"seed": 8})
    there = f"file://{tmp_path}/other"
    backbone = build_network(other).backbone
    export_teacher(open_store(there), NAME, backbone, config=other, step=20)
    with pytest.raises(UserError, match="holds another teacher, step-00000020"):
        hand_over(f"{there}/teachers/{NAME}", str(tmp_path / "mine"))
    with pytest.raises(UserError, match="no teacher at"):
        hand_over(f"file://{tmp_path}/nothing", str(tmp_path / "new"))
    # A teacher outside a run has a card all the same.
    hand_over(f"{there}/teachers/{NAME}", str(tmp_path / "alone"))
    assert "How it was judged" not in (tmp_path / "alone" / "README.md").read_text()


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks of the hub when a folder is uploaded, without large-file storage."""

    def do_POST(self) -> None:
        files: dict[str, bytes] = self.server.files  # type: ignore[attr-defined]
        here = f"http://{self.headers['Host']}/me/net"
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer good":
            return self._answer({"error": "Invalid username or password."}, 401)
        if "/preupload/" in self.path:
            wanted = json.loads(data)["files"]
            told = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in wanted]
            return self._answer({"files": told})
        if "/commit/" in self.path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"commitUrl": f"{here}/commit/1", "commitOid": "1", "pullRequestUrl": None})
        return self._answer({"url": here, "id": "me/net", "errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._answer({"id": "me/net", "sha": "1", "siblings": [], "private": True})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, tree: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}  # type: ignore[attr-defined]  # what was committed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.files  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def export_to_hub(run: str, endpoint: str, token: str, home: Path) -> tuple[int, str]:
    own = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    env = os.environ | own | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "eosin", "export", run, "--to", "hf://me/net"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_a_repository_on_the_hub_holds_what_timm_loads(run: str, tmp_path: Path) -> None:
    with hub() as (endpoint, files):
        code, said = export_to_hub(run, endpoint, "good", tmp_path / "home")
        assert code == 0, said
    assert set(files) == {"model.safetensors", "config.json", "README.md", "model.json"}
    (tmp_path / "got").mkdir()
    for name, data in files.items():
        (tmp_path / "got" / name).write_bytes(data)
    torch.testing.assert_close(
        features_of(tmp_path / "got"), features_of(tmp_path / "run" / "teachers" / NAME)
    )


def test_a_token_that_is_refused_is_a_users_error_and_no_hub_is_for_later(run: str, tmp_path: Path) -> None:
    with hub() as (endpoint, files):
        code, said = export_to_hub(run, endpoint, "bad", tmp_path / "home")
        assert code == 2 and "the hub refuses me/net (HTTP 401)" in said and "HF_TOKEN" in said, said
        assert not files
    code, said = export_to_hub(run, endpoint, "good", tmp_path / "home")
    assert code == 75 and "could not be sent to the hub" in said and "Traceback" not in said, said
