"""Checks of this machine and what it reaches, with the cure of each fault. They change nothing that stays."""

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from eosin.config.index import SlidesConfig, SourceConfig
from eosin.errors import Check, EosinError, install_command
from eosin.step_process import in_pod
from eosin.storage import ByteRange, NotFound, PreconditionFailed, Store, open_store
from eosin.storage.clients import credentials_hint
from eosin.words import counted, size_text

_IMPORT_TIMEOUT_S = 120.0


def run_checks(
    uri: str | None = None, slides: SlidesConfig | None = None, *, cluster: bool = False
) -> Iterator[Check]:
    """All checks of this machine, of the bucket or folder `uri` and of each source of `slides`, in turn; and,
    where `cluster`, those of the cluster of the kubeconfig.

    The bucket is tried by writing, reading and deleting two small objects under `uri`. Never raises for
    what it finds; libraries are imported in processes of their own, so that one that crashes is a finding.
    """
    yield _python()
    yield from _torch()
    yield _gpu()
    yield from map(_library, _LIBRARIES)
    yield _tile_parts()
    if not in_pod():  # the demo runs on a person's machine
        yield _s3_server()
    yield _disk(Path(tempfile.gettempdir()))
    yield _shared_memory()
    if uri is None or uri.startswith("s3://"):
        yield _credentials(needed=uri is not None)
    if uri is not None:
        yield from check_store(uri)
    for source in slides.sources or (SourceConfig(uri=slides.uri, name="slides"),) if slides else ():
        yield check_source(source)
    if cluster:
        from eosin.cluster.cluster_checks import run_cluster_checks

        yield from run_cluster_checks(uri=uri or "")


def check_source(source: SourceConfig) -> Check:
    """Whether the first slide that a source names can be listed, and its first bytes read."""
    from eosin.index.sources import SourcesStore, entries_of

    store, name = SourcesStore([source]), f"slides {source.name}"
    try:
        prefix = f"{source.name}/" if source.uri else next(iter(entries_of(source))).key
        first = next(iter(store.list(prefix))) if prefix.endswith("/") else store.head(prefix)
        store.get_ranges([ByteRange(first.key, 0, min(132, first.size_bytes), first.etag)])
    except EosinError as error:
        return Check(name, "fail", error.message, error.hint)
    except (StopIteration, NotFound):
        return Check(name, "fail", f"nothing is at {source}", "check slides.sources")
    return Check(name, "ok", f"{store.uri_of(first.key)} is read with {source.credentials}")


def check_store(uri: str) -> list[Check]:
    """Whether the place at `uri` does what eosin asks of it, operation by operation.

    Stops at the first failure of the basic ones, since the rest would only repeat it.
    """
    try:
        store = open_store(uri)
    except EosinError as error:
        return [Check("store", "fail", error.message, error.hint)]
    # Not a folder: on a file system that would stay.
    prefix = f".eosin-doctor-{secrets.token_hex(6)}-"
    checks: list[Check] = []
    for name, operation in _STORE_OPERATIONS:
        checks.append(_attempt(name, operation, store, prefix))
        if checks[-1].status == "fail":
            break
    if len(checks) > 2:  # something was written
        checks.append(_attempt("store delete", _delete, store, prefix))
    return checks


def _attempt(name: str, operation: Callable[[Store, str], str], store: Store, prefix: str) -> Check:
    try:
        return Check(name, "ok", operation(store, prefix))
    except EosinError as error:
        return Check(name, "fail", error.message, error.hint)
    except (AssertionError, KeyError, PreconditionFailed) as error:
        return Check(name, "fail", f"{store.uri}: {error}", "use a store that keeps S3's promises")


def _list(store: Store, prefix: str) -> str:
    first = next(iter(store.list()), None)
    return f"{store.uri} is empty" if first is None else f"{store.uri} holds {first.key} …"


def _put(store: Store, prefix: str) -> str:
    published = store.put(f"{prefix}object", b"0123456789")
    if store.get(f"{prefix}object") != b"0123456789":
        raise AssertionError("an object just written reads differently")
    return f"written and read back, etag {published.etag}"


def _range(store: Store, prefix: str) -> str:
    etag = store.head(f"{prefix}object").etag
    if store.get_ranges([ByteRange(f"{prefix}object", 3, 4, etag)]) != [b"3456"]:
        raise AssertionError("a byte range reads differently")
    return "byte ranges of a pinned version"


def _conditional(store: Store, prefix: str) -> str:
    key = f"{prefix}claim"
    etag = store.put(key, b"1", if_none_match=True).etag
    for condition in ({"if_none_match": True}, {"if_match": f"{etag[:-1]}x"}):
        try:
            store.put(key, b"2", **condition)
        except PreconditionFailed:
            continue
        raise AssertionError(f"a put with {next(iter(condition))} went through though it must not")
    store.put(key, b"2", if_match=etag)
    return "If-None-Match and If-Match hold"


def _delete(store: Store, prefix: str) -> str:
    keys = [item.key for item in store.list(prefix)]
    store.delete(keys)
    return f"{counted(len(keys), 'object')} of this check deleted"


_STORE_OPERATIONS: tuple[tuple[str, Callable[[Store, str], str]], ...] = (
    ("store list", _list),
    ("store put", _put),
    ("store ranges", _range),
    ("store conditional put", _conditional),
)


def _python() -> Check:
    eosin = _version("eosin") or "from source"
    return Check("python", "ok", f"{platform.python_version()} in {sys.prefix}, eosin {eosin}")


_TORCH_PROBE = """
import json, torch
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import scaled_dot_product_attention
ops = True
try:
    import torchvision
    torch.ops.torchvision.nms
except (ImportError, RuntimeError, AttributeError):
    ops = False
print(json.dumps({"version": torch.__version__, "ops": ops, "cuda": torch.version.cuda,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported()}))
"""


def _torch() -> Iterator[Check]:
    if _version("torch") is None:
        yield Check(
            "torch", "warn", "not installed: no training or evaluation here", install_command("train")
        )
        return
    found, problem = _probe(_TORCH_PROBE)
    if found is None:
        yield Check("torch", "fail", problem, install_command("train") + " (torch 2.7 or newer)")
        return
    gpus = ", ".join(found["gpus"]) or "no GPU in its reach"
    yield Check("torch", "ok", f"{found['version']}, {gpus}")
    if not found["ops"]:
        fix = "install a torchvision build that matches torch's"
        yield Check("torchvision ops", "warn", "missing; eosin declares the two that timm needs", fix)
    if found["gpus"] and not found["bf16"]:
        yield Check(
            "bfloat16", "warn", "this GPU does not compute in it", "train with train.precision=float32"
        )


def _gpu() -> Check:
    """The driver's own list, which also tells a GPU from a torch that cannot use it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("GPU", "warn", "no NVIDIA driver", "fine for index, demo and tests; train on a GPU node")
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            "GPU", "fail", f"nvidia-smi fails: {error}", "check the driver, or the pod's GPU request"
        )
    return Check("GPU", "ok", "; ".join(shown.split("\n")).strip("; "))


@dataclass(frozen=True)
class _Library:
    name: str
    distributions: tuple[str, ...]
    probe: str
    """Code that prints one JSON value: what to show beside the version."""
    extra: str
    without: str


_LIBRARIES = (
    _Library("OpenSlide", ("openslide-python",),
             "import json, openslide; print(json.dumps(openslide.__library_version__))",
             "", "MRXS, NDPI and others cannot be read"),
    _Library("cuCIM", ("cucim-cu13", "cucim-cu12", "cucim"),
             "import json, cucim; print(json.dumps('available' if cucim.is_available() else 'no GPU part'))",
             "gpu", "tiles are decoded without it"),
    _Library("nvImageCodec", ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"),
             "import json; from nvidia import nvimgcodec as n; "
             "d = n.Decoder(device_id=n.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[n.Backend(n.CPU_ONLY)]); "
             "print(json.dumps('decoder made'))",
             "gpu", "JPEG is decoded on the CPU"),
    _Library("Kubeflow Pipelines", ("kfp",), "import json, kfp; print(json.dumps('importable'))",
             "kubeflow", "no `eosin run`"),
)  # fmt: skip


def _library(library: _Library) -> Check:
    version = next((found for name in library.distributions if (found := _version(name))), None)
    if version is None:
        return Check(
            library.name, "warn", f"not installed: {library.without}", install_command(library.extra)
        )
    shown, problem = _probe(library.probe)
    if shown is None:
        cure = f"reinstall it: {install_command(library.extra)}"
        return Check(library.name, "fail", f"{version}: {problem}", cure)
    return Check(library.name, "ok", f"{version}, {shown}")


def _tile_parts() -> Check:
    from eosin.slides.decode import decodes_parts

    name = "parts of JPEG tiles"
    if decodes_parts():
        return Check(name, "ok", "decoded by the compiled module")
    fix = "install a C compiler and libjpeg-turbo's headers (gcc, libjpeg-dev), then eosin again"
    return Check(name, "warn", "no compiled module: tiles are decoded whole, at half the speed", fix)


def _s3_server() -> Check:
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("weed", path=folders)
    if found is None:
        return Check("S3 server", "warn", "no `weed`: the demo cannot start one", install_command("demo"))
    return Check("S3 server", "ok", found)


def _disk(folder: Path, *, warn_bytes: float = 10e9, fail_bytes: float = 1e9) -> Check:
    """Free space; slides that readers need whole are staged here."""
    name = "temporary files"
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name, "fail", f"{folder}: {error.strerror}", "set TMPDIR to a folder that exists")
    detail = f"{size_text(free_bytes)} free in {folder}"
    if free_bytes < warn_bytes:
        status: Literal["warn", "fail"] = "fail" if free_bytes < fail_bytes else "warn"
        return Check(name, status, detail, "free some space, or set TMPDIR to a larger disk")
    return Check(name, "ok", detail)


def _shared_memory(folder: Path = Path("/dev/shm"), *, warn_bytes: float = 1e9) -> Check:
    """Containers get 64 MB by default, which data-loader workers overrun with a bus error."""
    name = "shared memory"
    if not folder.is_dir():
        return Check(name, "ok", f"this system has no {folder}")
    total_bytes = shutil.disk_usage(folder).total
    detail = f"{folder} has {size_text(total_bytes)}"
    if total_bytes < warn_bytes:
        fix = "mount an emptyDir with medium Memory at /dev/shm (docker: --shm-size=8g)"
        return Check(name, "warn", detail, fix)
    return Check(name, "ok", detail)


def _credentials(*, needed: bool) -> Check:
    import boto3
    from botocore.exceptions import BotoCoreError

    name = "S3 credentials"
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on"):
        return Check(name, "ok", "none wanted: AWS_SKIP_SIGNATURE is set")
    try:
        found = boto3.Session().get_credentials()
    except BotoCoreError as error:
        return Check(name, "fail", str(error), "check AWS_PROFILE and ~/.aws")
    if found is None:
        return Check(name, "fail" if needed else "warn", "none found", credentials_hint())
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    return Check(name, "ok", f"from {found.method}, for {endpoint}")


def _probe(code: str) -> tuple[Any, str]:
    """(JSON value that `code` prints, "") or (None, why there is none), in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_IMPORT_TIMEOUT_S:g} s"
    if done.returncode < 0:
        return None, f"importing it crashes (signal {-done.returncode})"
    lines = done.stdout.splitlines()
    try:
        return json.loads(lines[-1]), ""
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it prints nothing"])[-1]
        return None, last


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
