"""Object store: ranged reads, atomic and conditional puts, retries; on S3 or in a folder."""

from eosin.storage.base import (
    AccessDenied,
    ByteRange,
    NotFound,
    ObjectChanged,
    ObjectInfo,
    PreconditionFailed,
    RangedObjects,
    Store,
    put_if_absent,
)
from eosin.storage.settings import S3Access
from eosin.storage.uri import join_uri, open_store, read_object, split_uri

__all__ = [
    "AccessDenied",
    "ByteRange",
    "NotFound",
    "ObjectChanged",
    "ObjectInfo",
    "PreconditionFailed",
    "RangedObjects",
    "S3Access",
    "Store",
    "join_uri",
    "open_store",
    "put_if_absent",
    "read_object",
    "split_uri",
]
