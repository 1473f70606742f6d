"""Stores by URI."""

from __future__ import annotations

from pathlib import Path

from eosin.errors import UserError
from eosin.storage.base import NotFound, Store
from eosin.storage.settings import ENVIRONMENT, S3Access, S3Settings
from eosin.storage.uri import parse_uri, split_uri


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
