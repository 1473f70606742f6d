"""URIs of stores and objects, and the store that one names.

`s3://` URIs and keys are raw text. `file://` URIs may be percent-encoded, as browsers and
`Path.as_uri` write them; those that eosin writes encode the percent sign only.
"""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

from eosin.errors import UserError
from eosin.storage.base import NotFound, Store
from eosin.storage.settings import ENVIRONMENT, S3Access, S3Settings


class Location(NamedTuple):
    """Where a URI points: `path` is a key without outer slashes (s3) or an absolute path (file)."""

    scheme: Literal["s3", "file"]
    bucket: str
    path: str

    @property
    def uri(self) -> str:
        """The URI in its one spelling; `%` of a path is escaped."""
        if self.scheme == "file":
            return "file://" + self.path.replace("%", "%25")
        return f"s3://{self.bucket}/{self.path}" if self.path else f"s3://{self.bucket}"


def parse_uri(uri: str) -> Location:
    """`s3://bucket/prefix`, `file:///path` or a plain path (taken from the working directory, `~` too).

    Raises `UserError` for another scheme, a missing bucket or an empty URI.
    """
    text = os.fspath(uri).strip()
    scheme, separator, rest = text.partition("://")
    if not text:
        raise UserError("an empty URI", hint="give s3://BUCKET/PREFIX, file:///PATH or a path")
    if not separator and re.match(r"(?i)(s3|file):", text):  # a slash too few, and no folder of that name
        raise UserError(f"{text}: no URI, `://` is missing", hint="s3://BUCKET/PREFIX, or ./ before a path")
    if not separator:
        return Location("file", "", _absolute(text))
    if scheme.lower() == "s3":
        return _s3(text, rest)
    if scheme.lower() == "file":
        return Location("file", "", _absolute(_local_part(text, rest)))
    raise UserError(
        f"{text}: eosin does not read {scheme}://",
        hint="use s3://BUCKET/PREFIX, file:///PATH or a plain path",
    )


def split_uri(uri: str) -> tuple[str, str]:
    """The URI of the widest store that holds `uri` (`s3://bucket` or `file:///`), and the key within it.

    `open_store` of the first takes the second, so slides from anywhere in a bucket share one store.
    """
    location = parse_uri(uri)
    if location.scheme == "file":
        return "file:///", location.path.lstrip("/")
    return f"s3://{location.bucket}", location.path


def join_uri(uri: str, *parts: str) -> str:
    """`uri` with `parts` appended, one slash between each; a trailing slash of the last part stays."""
    pieces = [piece for piece in (part.lstrip("/") for part in parts) if piece]
    inner = [piece.rstrip("/") for piece in pieces[:-1]] + pieces[-1:]
    root = parse_uri(uri)
    if not inner:
        return root.uri
    if root.scheme == "file":
        inner = [piece.replace("%", "%25") for piece in inner]
    return "/".join([root.uri.removesuffix("/"), *inner])


def _s3(text: str, rest: str) -> Location:
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UserError(f"{text}: no bucket named", hint="write s3://BUCKET/PREFIX")
    return Location("s3", bucket, key.strip("/"))


def _local_part(text: str, rest: str) -> str:
    path = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    if not path.startswith("/"):
        raise UserError(f"{text}: a file URI needs an absolute path", hint="write file:///PATH")
    return unquote(path)


def _absolute(text: str) -> str:
    return os.path.normpath(Path(text).expanduser().absolute())


def open_store(uri: str, access: S3Access = ENVIRONMENT) -> Store:
    """The store at `s3://bucket/prefix`, `file:///path` or a plain path. Sends nothing yet.

    S3 is reached as the environment says at this moment: AWS_ENDPOINT_URL(_S3), AWS_REGION,
    AWS_PROFILE and boto3's other sources of credentials, AWS_S3_ADDRESSING_STYLE, AWS_CA_BUNDLE,
    AWS_SKIP_SIGNATURE (public buckets), EOSIN_S3_TIMEOUT_S, EOSIN_RETRY_*; `access` goes before it. Opening
    is cheap; clients and connections are shared within the process. Raises `UserError` for a URI that cannot
    be meant.
    """
    location = parse_uri(uri)
    if location.scheme == "file":
        from eosin.storage.file import FileStore

        return FileStore(Path(location.path))
    from eosin.storage.s3 import S3Store

    return S3Store(location.bucket, location.path, S3Settings.from_env(access))


def read_object(uri: str, *, absent: str, hint: str = "") -> bytes:
    """The whole object or local file at `uri`. Raises `UserError` in the words given where none is."""
    root, key = split_uri(uri)
    try:
        return open_store(root).get(key)
    except NotFound:
        raise UserError(absent, hint=hint) from None
