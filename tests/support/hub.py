"""A Hugging Face hub on this machine: as much of its protocol as its client needs to read a repository."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from torch import nn

_COMMIT = "a" * 40


@contextmanager
def hub(folder: Path, models: Mapping[str, nn.Module]) -> Iterator[str]:
    """Serve `models` (by OWNER/NAME), saved as timm saves them; the endpoint."""
    from timm.models import save_for_hf

    for name, model in models.items():
        save_for_hf(model, str(folder / name), safe_serialization=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            data = self._find(self.path.partition("?")[0])
            self.send_response(404 if data is None else 200)
            self.send_header("X-Repo-Commit", _COMMIT)
            if data is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body and data is not None:
                self.wfile.write(data)

        def _find(self, path: str) -> bytes | None:
            if path.startswith("/api/models/"):
                name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
                found = {"id": name, "sha": _COMMIT, "tags": [], "siblings": []}
                return json.dumps(found).encode() if (folder / name).is_dir() else None
            parts = path.strip("/").split("/")
            file = folder.joinpath(*parts[:2], *parts[4:]) if parts[2:3] == ["resolve"] else folder / "none"
            return file.read_bytes() if file.is_file() else None

    return Handler
