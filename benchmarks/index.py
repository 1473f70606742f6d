"""Indexing slides in S3 on loopback against tifffile + s3fs, one slide at a time, in one run.

    python benchmarks/index.py --peer-python PEERS/bin/python [--slides 64] [--side 8192] [--delay-ms 40]

PEERS is a virtual environment with tifffile, s3fs and imagecodecs. Prints one JSON line: seconds on the
wall per 1,000 slides and GETs and bytes a slide, of both; ours with tissue masks, thumbnails and tile
tables published, the peer's with pixels read and nothing made of them. GETs and bytes are counted in a
second pass over a few slides, through a forwarding port.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from eosin.config import load_config
from eosin.demo.server import LocalS3
from eosin.demo.synthetic import SyntheticConfig, publish_slide
from eosin.index.publish import publish_snapshot
from eosin.index.scan import scan_shard
from eosin.observability import RunLog
from eosin.storage import open_store

PEER = Path(__file__).with_name("index_peer.py")
MASK_MPP = 8.0
NUM_DRAWN = 4
NUM_COUNTED = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--slides", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="to the first byte of every answer")
    parser.add_argument("--side", type=int, default=8192, help="side of a slide in pixels")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder, LocalS3(Path(folder, "s3")) as s3:
        os.environ.update(s3.env)
        s3.ensure_bucket("s3://bench")
        size_bytes = upload(Path(folder), arguments.slides, arguments.side)
        with through(s3, arguments.delay_ms / 1e3):
            timed = {
                "eosin": ours("all", "index"),
                "peer": theirs(arguments.peer_python, "all"),
            }
        counted = {
            name: count(s3, work)
            for name, work in (
                ("eosin", lambda: ours("few", "index-few")),
                ("peer", lambda: theirs(arguments.peer_python, "few")),
            )
        }
    report(timed, counted, arguments, size_bytes)


def upload(folder: Path, num_slides: int, side_px: int) -> int:
    """Slides under `all/` and a few of them under `few/`; the mean size of one."""
    config = SyntheticConfig(width_px=side_px, height_px=side_px)
    paths = [folder / f"{seed}.svs" for seed in range(NUM_DRAWN)]
    for seed, path in enumerate(paths):
        publish_slide(open_store(str(folder)), path.name, seed=seed, config=config)
    store = open_store("s3://bench/slides")
    for i in range(num_slides):
        store.put_file(f"all/{i:04d}.svs", paths[i % NUM_DRAWN])
    for i in range(NUM_COUNTED):
        store.put_file(f"few/{i}.svs", paths[i])
    return sum(path.stat().st_size for path in paths) // NUM_DRAWN


def ours(which: str, index: str) -> dict[str, float]:
    config = load_config(
        "", overrides=[f"slides.uri=s3://bench/slides/{which}", f"index.uri=s3://bench/{index}",
                       f"index.tissue.mpp={MASK_MPP}"]
    )  # fmt: skip
    log = RunLog("index")
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    scan_shard(config, 0, 1, log)
    manifest = publish_snapshot(config, 1, log)
    assert manifest.num_ok == manifest.num_slides
    return {
        "slides": manifest.num_slides,
        "wall_s": time.perf_counter() - begin_s,
        "cpu_s": time.process_time() - begin_cpu_s,
    }


def theirs(python: str, which: str) -> dict[str, float]:
    command = [python, str(PEER), f"bench/slides/{which}", str(MASK_MPP)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


@contextmanager
def through(s3: LocalS3, delay_s: float) -> Iterator[Forwarder | None]:
    """What is asked of the store goes through a port that delays answers; straight to it for 0."""
    if not delay_s:
        yield None
        return
    with Forwarder(s3.endpoint_url, delay_s) as forwarder:
        os.environ["AWS_ENDPOINT_URL_S3"] = os.environ["AWS_ENDPOINT_URL"] = forwarder.endpoint_url
        yield forwarder
        os.environ["AWS_ENDPOINT_URL_S3"] = os.environ["AWS_ENDPOINT_URL"] = s3.endpoint_url


def count(s3: LocalS3, work: Any) -> dict[str, float]:
    """GETs and bytes of slides while `work` runs, a slide."""
    with through(s3, 1e-6) as forwarder:
        work()
    assert forwarder is not None
    return {name: forwarder.seen[name] / NUM_COUNTED for name in ("gets", "bytes")}


def report(
    timed: dict[str, dict[str, float]], counted: dict[str, dict[str, float]],
    arguments: argparse.Namespace, size_bytes: int,
) -> None:  # fmt: skip
    line: dict[str, float | int | str] = {
        "slides": arguments.slides, "side_px": arguments.side, "slide_mb": round(size_bytes / 1e6, 2),
        "delay_ms": arguments.delay_ms, "load": os.getloadavg()[0],
    }  # fmt: skip
    for name in ("eosin", "peer"):
        line |= {
            f"{name}_s_per_1000": round(1000 * timed[name]["wall_s"] / timed[name]["slides"], 1),
            f"{name}_cpu_s_per_1000": round(1000 * timed[name]["cpu_s"] / timed[name]["slides"], 1),
            f"{name}_gets": round(counted[name]["gets"], 1),
            f"{name}_kb": round(counted[name]["bytes"] / 1e3, 1),
        }
    print(json.dumps(line))


class Forwarder:
    """A port that passes everything on, each answer after a delay, and counts GETs and bytes of slides."""

    def __init__(self, endpoint_url: str, delay_s: float) -> None:
        host, _, port = endpoint_url.rpartition("/")[2].partition(":")
        self._upstream = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.seen = Counter[str]()
        self._delay_s = delay_s
        self._lock = threading.Lock()

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._upstream)
            of_slide = [False, False]
            for target, arguments in (
                (self._up, (client, upstream, of_slide)), (self._down, (upstream, client, of_slide))
            ):  # fmt: skip
                threading.Thread(target=target, args=arguments, daemon=True).start()

    def _up(self, client: socket.socket, upstream: socket.socket, of_slide: list[bool]) -> None:
        while data := _received(client):
            if data[:5] in (b"GET /", b"HEAD ", b"PUT /", b"POST "):
                of_slide[:] = data.startswith(b"GET /bench/slides/"), True
                with self._lock:
                    self.seen["gets"] += of_slide[0]
            upstream.sendall(data)
        upstream.close()

    def _down(self, upstream: socket.socket, client: socket.socket, of_slide: list[bool]) -> None:
        while data := _received(upstream):
            if of_slide[1]:
                of_slide[1] = False
                time.sleep(self._delay_s)
            if of_slide[0]:
                with self._lock:
                    self.seen["bytes"] += len(data)
            client.sendall(data)
        client.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 18)
    except OSError:
        return b""


if __name__ == "__main__":
    main()
