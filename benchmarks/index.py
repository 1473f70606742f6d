"""Indexing slides in S3 on loopback against tifffile + s3fs, one slide at a time, in one run.

    python benchmarks/index.py --peer-python PEERS/bin/python [--slides 96 300] [--side 8192] [--delay-ms 40]

PEERS is a virtual environment with tifffile, s3fs and imagecodecs. Prints one JSON line a number of slides:
seconds on the wall and of CPU (child processes too, the store's not) per 1,000 slides, of both; ours with
tissue masks, thumbnails and tile tables published as by `eosin index`, the peer's with pixels read and
nothing made of them.
From the second line on also per 1,000 slides more than on the line before (`more`), without what is done
once an index. GETs and bytes a slide are counted in a pass over 24 slides, one of them in the sample that is
held against another reader. Delays are made, and GETs counted, by a forwarding port of a process of its
own.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

from eosin.config import load_config
from eosin.demo.server import LocalS3
from eosin.demo.synthetic import SyntheticConfig, publish_slide
from eosin.steps import index_slides
from eosin.storage import open_store

PEER = Path(__file__).with_name("index_peer.py")
MASK_MPP = 8.0
NUM_DRAWN = 4
NUM_COUNTED = 24

Work = Callable[[str], dict[str, float]]
"""Indexes the slides under `slides/NAME/`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--slides", type=int, nargs="+", default=[96, 300])
    parser.add_argument("--delay-ms", type=float, default=0.0, help="to the first byte of every answer")
    parser.add_argument("--side", type=int, default=8192, help="side of a slide in pixels")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="eosin-benchmark-") as folder, LocalS3(Path(folder, "s3")) as s3:
        os.environ.update(s3.env)
        s3.ensure_bucket("s3://bench")
        size_bytes = upload(Path(folder), (NUM_COUNTED, *arguments.slides), arguments.side)
        works: dict[str, Work] = {"eosin": ours, "peer": partial(theirs, arguments.peer_python)}
        counted = {name: count(s3, work) for name, work in works.items()}
        before: dict[str, dict[str, float]] = {}
        for num_slides in arguments.slides:
            with through(s3, arguments.delay_ms / 1e3):
                timed = {name: work(f"{num_slides}") for name, work in works.items()}
            report(timed, before, counted, arguments, size_bytes)
            before = timed


def upload(folder: Path, nums_slides: Sequence[int], side_px: int) -> int:
    """As many slides under `NUM/` as each number says; the mean size of one."""
    config = SyntheticConfig(width_px=side_px, height_px=side_px)
    paths = [folder / f"{seed}.svs" for seed in range(NUM_DRAWN)]
    for seed, path in enumerate(paths):
        publish_slide(open_store(str(folder)), path.name, seed=seed, config=config)
    store = open_store("s3://bench/slides")
    for num_slides in nums_slides:
        for i in range(num_slides):
            store.put_file(f"{num_slides}/{i:05d}.svs", paths[i % NUM_DRAWN])
    return sum(path.stat().st_size for path in paths) // NUM_DRAWN


def ours(which: str) -> dict[str, float]:
    config = load_config(
        "", overrides=[f"slides.uri=s3://bench/slides/{which}", f"index.uri=s3://bench/index-{time.time_ns()}",
                       f"index.tissue.mpp={MASK_MPP}"]
    )  # fmt: skip
    begin_s, begin_cpu_s = time.perf_counter(), sum(os.times()[:4])
    manifest = index_slides(config, None, None)
    assert manifest.num_ok == manifest.num_slides
    return {
        "slides": manifest.num_slides,
        "wall_s": time.perf_counter() - begin_s,
        "cpu_s": sum(os.times()[:4]) - begin_cpu_s,
    }


def theirs(python: str, which: str) -> dict[str, float]:
    command = [python, str(PEER), f"bench/slides/{which}", str(MASK_MPP)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


@contextmanager
def through(s3: LocalS3, delay_s: float) -> Iterator[Counter[str]]:
    """What is asked of the store goes through a port that delays answers; straight to it for 0.

    GETs and bytes of slides are known once the context has ended.
    """
    seen = Counter[str]()
    if not delay_s:
        yield seen
        return
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=forward, args=(s3.endpoint_url, delay_s, there), daemon=True)
    process.start()
    os.environ["AWS_ENDPOINT_URL_S3"] = os.environ["AWS_ENDPOINT_URL"] = here.recv()
    yield seen
    os.environ["AWS_ENDPOINT_URL_S3"] = os.environ["AWS_ENDPOINT_URL"] = s3.endpoint_url
    here.send(None)
    seen.update(here.recv())
    process.join()


def forward(endpoint_url: str, delay_s: float, parent: Connection) -> None:
    """A `Forwarder` until the parent has had enough; tells it the port, and what was seen."""
    with Forwarder(endpoint_url, delay_s) as forwarder:
        parent.send(forwarder.endpoint_url)
        parent.recv()
        parent.send(forwarder.seen)


def count(s3: LocalS3, work: Work) -> dict[str, float]:
    """GETs and bytes of slides while `work` runs, a slide."""
    with through(s3, 1e-6) as seen:
        work(f"{NUM_COUNTED}")
    return {name: seen[name] / NUM_COUNTED for name in ("gets", "bytes")}


def report(
    timed: dict[str, dict[str, float]], before: dict[str, dict[str, float]],
    counted: dict[str, dict[str, float]], arguments: argparse.Namespace, size_bytes: int,
) -> None:  # fmt: skip
    line: dict[str, float | int | str] = {
        "slides": timed["eosin"]["slides"], "side_px": arguments.side, "slide_mb": round(size_bytes / 1e6, 2),
        "delay_ms": arguments.delay_ms, "load": os.getloadavg()[0],
    }  # fmt: skip
    for name in ("eosin", "peer"):
        line |= {
            f"{name}_s_per_1000": round(1000 * timed[name]["wall_s"] / timed[name]["slides"], 1),
            f"{name}_cpu_s_per_1000": round(1000 * timed[name]["cpu_s"] / timed[name]["slides"], 1),
            f"{name}_gets": round(counted[name]["gets"], 1),
            f"{name}_kb": round(counted[name]["bytes"] / 1e3, 1),
        }
        if before:
            more = {key: timed[name][key] - before[name][key] for key in timed[name]}
            line |= {
                f"{name}_more_s_per_1000": round(1000 * more["wall_s"] / more["slides"], 1),
                f"{name}_more_cpu_s_per_1000": round(1000 * more["cpu_s"] / more["slides"], 1),
            }
    print(json.dumps(line), flush=True)


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

    def __enter__(self) -> "Forwarder":
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
