"""The three kinds of error, the exit codes that tell a scheduler what to do, and the finding of a check."""

import errno
import json
import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal
from urllib.parse import unquote, urlsplit

EXIT_OK = 0
EXIT_PERMANENT = 1
EXIT_USER = 2
EXIT_CONFIGURATION_IN_POD = 42
EXIT_PERMANENT_IN_POD = 43
"""A training pod met a defect that no restart mends; like 42, it fails the Job at once."""
EXIT_TRANSIENT = 75
EXIT_INTERRUPTED = 130


class EosinError(Exception):
    """What failed, on which object; `hint` is what to do about it (may be empty)."""

    exit_code = EXIT_PERMANENT

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(EosinError):
    """The request cannot be met as asked; asking again changes nothing."""

    exit_code = EXIT_USER


class TransientError(EosinError):
    """The world was not ready (network, throttling) and stayed so after retries; ask again later."""

    exit_code = EXIT_TRANSIENT


class PermanentError(EosinError):
    """A defect of the data or of eosin that no retry mends."""

    exit_code = EXIT_PERMANENT


class MissingDependency(UserError):
    """An optional library is absent; the hint is the command that installs it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed", hint=install_command(extra))

    def __reduce__(self) -> tuple[object, ...]:
        return UserError, self.args, vars(self)


def install_command(extra: str = "") -> str:
    """The pip command that installs eosin, with an extra, from where this eosin came (PEP 610).

    Where nothing says so it came from a package index or as a bare wheel, and is named. An image has no pip
    and a read-only root: there it is the image that has the extra.
    """
    if image := os.environ.get("EOSIN_IMAGE"):
        other = _IMAGE_OF.get(extra)
        return f"this is the {image} image; " + (f"the {other} image has it" if other else "no image has it")
    try:
        origin = json.loads(distribution("eosin").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    extras = f"[{extra}]" if extra else ""
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{unquote(urlsplit(url).path)}{extras}'"
    if not url:
        return f"pip install 'eosin{extras}'"
    scheme = f"{origin['vcs_info']['vcs']}+" if "vcs_info" in origin else ""
    return f"pip install 'eosin{extras} @ {scheme}{url}'"


_IMAGE_OF = {
    "train": "train", "gpu": "train", "tensorboard": "train", "evaluate": "evaluate", "datasets": "evaluate",
    "onnx": "index",
}  # fmt: skip
"""The image that an extra is in, where not in all (environment/lock.py)."""
_EXTRAS = {
    "torch": "train", "torchvision": "train", "timm": "train", "safetensors": "train",
    "prometheus_client": "train", "kfp": "kubeflow", "kfp_server_api": "kubeflow", "kubernetes": "kubeflow",
    "h5py": "datasets", "scipy": "evaluate", "sklearn": "evaluate", "tensorboard": "tensorboard",
    "onnxruntime": "onnx", "tifffile": "demo", "wandb": "wandb", "mlflow": "mlflow",
}  # fmt: skip
"""The extra that brings a module."""
_SHARED_MEMORY = "/dev/shm"
_REFUSALS = (errno.EACCES, errno.ENOENT, errno.EPERM, errno.EROFS)


def as_user_error(error: BaseException) -> BaseException:
    """A `UserError` where an extra is not installed or /dev/shm is closed, else `error`."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module in _EXTRAS:
        return MissingDependency(module, _EXTRAS[module])
    # A semaphore's file there has no name in the error that its refusal raises.
    closed = sys.platform == "linux" and not os.access(_SHARED_MEMORY, os.W_OK)
    if closed and isinstance(error, OSError) and error.errno in _REFUSALS and error.filename is None:
        message = f"this user may not write to {_SHARED_MEMORY}, where processes share their locks: {error}"
        return UserError(message, hint=f"mount -t tmpfs -o mode=1777 tmpfs {_SHARED_MEMORY}")
    return error


def exit_code_of(error: BaseException) -> int:
    """The process exit code for `error`.

    Inside a training pod (`EOSIN_IN_POD=1`) a user's error is 42, which the pod failure
    policy turns into a failed Job at once; elsewhere it is 2.
    """
    if isinstance(error, UserError):
        return EXIT_CONFIGURATION_IN_POD if os.environ.get("EOSIN_IN_POD") == "1" else EXIT_USER
    if isinstance(error, EosinError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_PERMANENT


def error_of(exit_code: int, message: str, hint: str = "") -> EosinError:
    """The error that a process reported before it ended with `exit_code`."""
    kinds = {EXIT_USER: UserError, EXIT_CONFIGURATION_IN_POD: UserError, EXIT_TRANSIENT: TransientError}
    return kinds.get(exit_code, PermanentError)(message, hint=hint)


def describe(error: BaseException) -> str:
    """One line a person can act on; never a traceback."""
    if isinstance(error, EosinError):
        return f"{error.message}\n  {error.hint}" if error.hint else error.message
    return f"{type(error).__name__}: {error}"


def why_unreachable(error: Exception) -> str:
    """Why a server gave no answer, without urllib3's words about its pools and retries."""
    from urllib3 import exceptions

    cause = getattr(error, "reason", None) or error
    for kind, words in (
        (exceptions.NameResolutionError, "no such host"),
        (exceptions.SSLError, f"TLS failed: {cause}"),
        (exceptions.ProtocolError, "the connection was closed"),
        (TimeoutError, "no answer in time"),
    ):
        if isinstance(cause, kind):
            return words
    if isinstance(cause, exceptions.TimeoutError) and not isinstance(cause, exceptions.NewConnectionError):
        return "no answer in time"
    inner = cause.__cause__ if isinstance(cause.__cause__, OSError) else cause
    return (getattr(inner, "strerror", None) or str(inner)).lower()


@dataclass(frozen=True)
class Check:
    """One finding. `warn`: eosin runs, but not everything; `fail`: something asked for cannot work."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""
