"""Teachers handed over to folders and to a hub, and loaded from there by timm alone."""

import base64
import hashlib
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

# A file above the first goes to the hub as a large one, in parts of the second.
LARGE_BYTES, PART_BYTES = 100_000, 40_000
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


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("", {}),
        (
            'Ours: "no sale" | ask\nus # first',
            {"license": "other", "license_name": "ours-no-sale-ask-us-first"},
        ),
        ("---\nlicense: mit", {"license": "other", "license_name": "license-mit"}),
        ("yes", {"license": "yes"}),
        ("Café: 自由 (own terms)", {"license": "other", "license_name": "caf-own-terms"}),
    ],
)
def test_any_licence_leaves_a_card_that_the_hubs_own_reader_reads(
    licence: str, told: dict[str, str], run: str, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    hand_over(f"{run}/teachers/{NAME}", str(tmp_path / "mine"), licence=licence)
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    found = {name: value for name, value in card.data.to_dict().items() if name.startswith("license")}
    assert found == told and card.data.library_name == "timm"
    assert card.data.tags == ["feature-extraction", "pathology"]
    (row,) = [line for line in card.text.splitlines() if line.startswith("| licence")]
    assert row.replace("\\|", "").count("|") == 3


KINDS = {
    "plain": {}, "registers": {"reg_tokens": 4}, "no_embed_class": {"reg_tokens": 4, "no_embed_class": True},
    "swiglu_packed": {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}, "swiglu": {"mlp_layer": "SwiGLU"},
    "short_names": {"act_layer": "quick_gelu", "norm_layer": "RmsNorm"}, "qk_norm": {"qk_norm": True},
    "pre_norm": {"pre_norm": True, "final_norm": False}, "no_bias": {"qkv_bias": False, "proj_bias": False},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_the_card_load_every_kind_of_network(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tiny_config().model.arch_args | KINDS[kind]
    config = tiny_config(model={"arch_args": args})
    backbone = build_network(config).backbone.eval()
    export_teacher(open_store(str(tmp_path)), NAME, backbone, config=config, step=20)
    monkeypatch.chdir(tmp_path / "teachers")
    blocks = (tmp_path / "teachers" / NAME / "README.md").read_text().split("```python\n")
    loaded: dict[str, Any] = {}
    exec(blocks[1].partition("```")[0], loaded)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded["model"](images), backbone(images)[:, 0])


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks of the hub when a folder is uploaded; large files go in parts, as to S3."""

    def do_PUT(self) -> None:
        oid, number = self.path.split("/")[-2:]
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.parts[oid, int(number)] = data  # type: ignore[attr-defined]
        self._answer({}, etag=f"{number}-of-{oid[:4]}")

    def _large(self, data: bytes) -> None:
        """Git LFS: where to put the parts of each object, and that all of them are there."""
        asked, here = json.loads(data), f"http://{self.headers['Host']}"
        if "parts" in asked:
            told = [part["etag"] for part in asked["parts"]]
            assert told == [f"{number}-of-{asked['oid'][:4]}" for number in range(1, len(told) + 1)]
            return self._answer({})
        objects = []
        for each in asked["objects"]:
            num_parts = -(-each["size"] // PART_BYTES)
            parts = {str(n): f"{here}/part/{each['oid']}/{n}" for n in range(1, num_parts + 1)}
            upload = {
                "href": f"{here}/me/net.git/info/lfs/complete",
                "header": {"chunk_size": str(PART_BYTES), **parts},
            }
            objects.append({**each, "actions": {"upload": upload}})
        return self._answer({"transfer": "multipart", "objects": objects})

    def do_POST(self) -> None:
        files: dict[str, bytes] = self.server.files  # type: ignore[attr-defined]
        here = f"http://{self.headers['Host']}/me/net"
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/complete"):  # as S3, which an address alone admits
            return self._large(data)
        if self.headers.get("Authorization") != "Bearer good":
            return self._answer({"error": "Invalid username or password."}, 401)
        if "/info/lfs/" in self.path:
            return self._large(data)
        if "/preupload/" in self.path:
            wanted = json.loads(data)["files"]
            told = [
                {"path": each["path"], "uploadMode": "lfs" if each["size"] > LARGE_BYTES else "regular",
                 "shouldIgnore": False}
                for each in wanted
            ]  # fmt: skip
            return self._answer({"files": told})
        if "/commit/" in self.path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "lfsFile":
                    value = line["value"]
                    parts: dict[tuple[str, int], bytes] = self.server.parts  # type: ignore[attr-defined]
                    own = sorted(
                        (number, part) for (oid, number), part in parts.items() if oid == value["oid"]
                    )
                    whole = b"".join(part for _, part in own)
                    assert hashlib.sha256(whole).hexdigest() == value["oid"] and len(own) > 1
                    files[value["path"]] = whole
                elif line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"commitUrl": f"{here}/commit/1", "commitOid": "1", "pullRequestUrl": None})
        return self._answer({"url": here, "id": "me/net", "errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._answer({"id": "me/net", "sha": "1", "siblings": [], "private": True})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, tree: dict[str, Any], status: int = 200, etag: str = "") -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.parts = {}, {}  # type: ignore[attr-defined]  # what was committed; parts of it
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
