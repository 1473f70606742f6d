"""The object store: ranged and batched reads, atomic publish, conditional put, retry; s3 and file."""

from eosin.storage.base import (
    AccessDenied,
    ByteRange,
    NotFound,
    ObjectChanged,
    ObjectInfo,
    PreconditionFailed,
    Store,
    put_if_absent,
)
from eosin.storage.open import join_uri, open_store, split_uri

__all__ = [
    "AccessDenied",
    "ByteRange",
    "NotFound",
    "ObjectChanged",
    "ObjectInfo",
    "PreconditionFailed",
    "Store",
    "join_uri",
    "open_store",
    "put_if_absent",
    "split_uri",
]
