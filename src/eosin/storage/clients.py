"""The boto3 and obstore clients of this process, shared by all stores of equal settings."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eosin.errors import UserError
from eosin.storage.settings import DEFAULT_REGION, S3Settings

if TYPE_CHECKING:
    import boto3
    import obstore.store
    from mypy_boto3_s3 import S3Client

# A batch may send more requests at once than this; the rest waits for a connection.
MAX_CONNECTIONS = 64
# Shorter than the ten minutes before expiry at which botocore refreshes, so that what obstore holds
# never expires in its hands.
_CREDENTIAL_TTL = timedelta(minutes=5)


@dataclass
class Clients:
    """`boto` for control objects; `bulk(bucket)` for ranged reads."""

    settings: S3Settings
    session: boto3.Session
    boto: S3Client
    _bulk: dict[str, obstore.store.S3Store] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def bulk(self, bucket: str) -> obstore.store.S3Store:
        """The obstore client of one bucket; raises `UserError` without credentials."""
        with self._lock:
            if bucket not in self._bulk:
                self._bulk[bucket] = _make_bulk(self, bucket)
            return self._bulk[bucket]


_clients: dict[S3Settings, Clients] = {}
_lock = threading.Lock()


def clients_for(settings: S3Settings) -> Clients:
    """The clients of this process for `settings`; a fork begins with none."""
    with _lock:
        if settings not in _clients:
            _clients[settings] = _make(settings)
        return _clients[settings]


def _forget_after_fork() -> None:
    # Connections cannot be shared with the parent, and the lock may have been held by one of its threads.
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _make(settings: S3Settings) -> Clients:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        boto = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region or session.region_name or DEFAULT_REGION,
            verify=_checked_bundle(settings.ca_bundle),
            config=_boto_config(settings),
        )
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"S3 cannot be set up: {error}", hint="check AWS_PROFILE and AWS_ENDPOINT_URL"
        ) from None
    return Clients(settings, session, boto)


def _boto_config(settings: S3Settings) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    # Sent by default, the new checksums are refused by many S3-compatible stores.
    checksums: dict[str, Any] = {
        name: os.environ.get(f"AWS_{name.upper()}", "when_required")
        for name in ("request_checksum_calculation", "response_checksum_validation")
    }
    addressing: Any = {"addressing_style": settings.addressing_style}
    return Config(
        # One try each: eosin counts and spaces the tries itself.
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=min(10.0, settings.timeout_s),
        read_timeout=settings.timeout_s,
        max_pool_connections=MAX_CONNECTIONS,
        s3=addressing,
        signature_version=UNSIGNED if settings.anonymous else None,
        **checksums,
    )


def _make_bulk(clients: Clients, bucket: str) -> obstore.store.S3Store:
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    settings = clients.settings
    # All said here, since obstore would take what is left open from the environment of this moment.
    config: dict[str, Any] = {
        "region": clients.boto.meta.region_name,
        "skip_signature": settings.anonymous,
    }
    virtual = settings.addressing_style == "virtual" or (
        settings.addressing_style == "auto" and "." not in bucket
    )
    config["virtual_hosted_style_request"] = virtual
    endpoint = _custom_endpoint(clients)
    if endpoint:
        url = endpoint.replace("://", f"://{bucket}.", 1) if virtual else endpoint
        config |= {"endpoint": url, "aws_endpoint_url_s3": url}
    try:
        return S3Store(
            bucket,
            config=config,  # type: ignore[arg-type]
            client_options=_bulk_options(settings),  # type: ignore[arg-type]
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=settings.timeout_s)},
            credential_provider=None if settings.anonymous else _credential_provider(clients),
        )
    except BaseError as error:
        # obstore reads AWS_* itself and may not understand a value that boto3 does.
        raise UserError(
            f"S3 cannot be set up for bucket {bucket}: {str(error).splitlines()[0]}",
            hint="check the AWS_* environment variables",
        ) from None


def _bulk_options(settings: S3Settings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=min(10.0, settings.timeout_s)),
        "read_timeout": timedelta(seconds=settings.timeout_s),
        "timeout": timedelta(seconds=10 * settings.timeout_s),
        "pool_max_idle_per_host": str(MAX_CONNECTIONS),
    }
    bundle = _checked_bundle(settings.ca_bundle)
    if bundle:
        options["root_certificate"] = Path(bundle).read_bytes()
    return options


def _credential_provider(clients: Clients) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    if clients.session.get_credentials() is None:
        raise no_credentials("read")
    provider = Boto3CredentialProvider(clients.session, ttl=_CREDENTIAL_TTL)
    provider.config = {}  # the region is ours to say
    return provider


def no_credentials(operation: str) -> UserError:
    """What to say where boto3's chain finds no key at all."""
    return UserError(
        f"cannot {operation}: no S3 credentials found",
        hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket "
        "AWS_SKIP_SIGNATURE=true",
    )


def _custom_endpoint(clients: Clients) -> str | None:
    """The endpoint in use unless it is AWS's own (it may also come from a profile)."""
    endpoint = clients.boto.meta.endpoint_url
    return None if "amazonaws.com" in endpoint else endpoint


def _checked_bundle(path: str | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise UserError(f"AWS_CA_BUNDLE={path} is not a file", hint="name a PEM file, or unset AWS_CA_BUNDLE")
    return path
