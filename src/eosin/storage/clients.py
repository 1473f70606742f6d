"""Clients of this process, boto3 and libcurl, shared by all stores of equal settings."""

import hmac
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from eosin import __version__
from eosin.errors import UserError
from eosin.storage.curl_client import CurlClient, CurlOptions, Put, Request
from eosin.storage.settings import DEFAULT_REGION, S3Settings

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client

_BOTO_CONNECTIONS = 64


_NOTHING_SHA256 = sha256(b"").hexdigest()
# A server takes a signature for a quarter of an hour; until then it serves every range of its key.
_SIGNED_ANEW_S = 60


class Signer(NamedTuple):
    """Credentials of one moment and what they sign for; all empty where requests are anonymous."""

    region: str
    access_key: str
    secret_key: str
    token: str
    """Of temporary keys."""

    def headers_of(self, request: Request) -> tuple[str, ...]:
        """What a request has to say beside its own headers."""
        if not self.access_key:
            return ()
        is_put = isinstance(request, Put)
        digest = sha256(request.body).hexdigest() if isinstance(request, Put) else _NOTHING_SHA256
        return _signed(self, is_put, request.url, digest, int(time.time()) // _SIGNED_ANEW_S)


@lru_cache(maxsize=1024)  # to sign each request anew, as libcurl does, takes an eighth of its time
def _signed(signer: Signer, is_put: bool, url: str, digest: str, time_slot: int) -> tuple[str, ...]:
    """Headers of signature version 4 (docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html)
    of a URL without query; neither range nor condition is signed."""
    parts = urlsplit(url)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time_slot * _SIGNED_ANEW_S))
    fields = {"content-type": "binary/octet-stream"} if is_put else {}
    fields["host"] = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")
    fields |= {"x-amz-content-sha256": digest, "x-amz-date": moment}
    if signer.token:
        fields["x-amz-security-token"] = signer.token
    names, lines = ";".join(fields), [f"{name}:{value}" for name, value in fields.items()]
    canonical = "\n".join(["PUT" if is_put else "GET", parts.path, "", *lines, "", names, digest])
    scope = f"{moment[:8]}/{signer.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{signer.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={signer.access_key}/{scope}"
    return (*lines, f"Authorization: {credential}, SignedHeaders={names}, Signature={signature}")


@dataclass
class Clients:
    """`boto` for control objects; `curl` for ranged reads."""

    settings: S3Settings
    session: "boto3.Session"
    boto: "S3Client"
    curl: CurlClient

    def signer(self, bucket: str) -> Signer:
        """The credentials of this moment; botocore renews those that expire. Raises `UserError` for none."""
        if self.settings.anonymous:
            return Signer("", "", "", "")
        credentials = self.session.get_credentials()
        if credentials is None:
            raise no_credentials(f"read s3://{bucket}")
        frozen = credentials.get_frozen_credentials()
        region = self.boto.meta.region_name
        return Signer(region, str(frozen.access_key), str(frozen.secret_key), frozen.token or "")

    def bucket_url(self, bucket: str) -> str:
        """Where the keys of a bucket begin, with the slash before them."""
        endpoint, style = self.boto.meta.endpoint_url, self.settings.addressing_style
        if style == "virtual" or (style == "auto" and "." not in bucket):
            return endpoint.replace("://", f"://{bucket}.", 1) + "/"
        return f"{endpoint}/{bucket}/"


_clients: dict[S3Settings, Clients] = {}
_of_parents: list[dict[S3Settings, Clients]] = []
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
    # Never closed here: to close a connection tells the server, which would end the parent's as well.
    _of_parents.append(dict(_clients))
    _clients.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _make(settings: S3Settings) -> Clients:
    import boto3
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        core = botocore.session.get_session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
        session = boto3.Session(profile_name=settings.named_profile, botocore_session=core)
        boto = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region or session.region_name or DEFAULT_REGION,
            verify=_checked_bundle(settings.ca_bundle),
            config=_boto_config(settings),
        )
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"S3 cannot be set up: {error}", hint="check AWS_PROFILE (or the source's) and AWS_ENDPOINT_URL"
        ) from None
    return Clients(settings, session, boto, _curl_client(settings, boto))


@lru_cache
def _loader(data_path: str | None) -> Any:
    """What botocore knows of services: most of what a client costs, so read once, for forks to come too."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def _moment(text: Any) -> datetime:
    """The time in an answer; botocore's own way takes most of what a listing costs."""
    from botocore.utils import parse_timestamp

    with suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment
    parsed: datetime = parse_timestamp(text)
    return parsed


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
        max_pool_connections=_BOTO_CONNECTIONS,
        s3=addressing,
        signature_version=UNSIGNED if settings.anonymous else None,
        **checksums,
    )


def _curl_client(settings: S3Settings, boto: "S3Client") -> CurlClient:
    return CurlClient(
        CurlOptions(
            ca_bundle=_ca_bundle(settings),
            proxy=_proxy(boto.meta.endpoint_url),
            timeout_s=settings.timeout_s,
            user_agent=f"eosin/{__version__}",
        )
    )


def _ca_bundle(settings: S3Settings) -> str:
    """As boto3 chooses it."""
    from botocore.httpsession import get_cert_path

    return settings.ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or str(get_cert_path(True))


def _proxy(endpoint_url: str) -> str:
    """The proxy that the environment names for the endpoint, as boto3 finds it; empty for none."""
    url = urlsplit(endpoint_url)
    if proxy_bypass(url.hostname or ""):
        return ""
    return getproxies().get(url.scheme, "")


def no_credentials(operation: str) -> UserError:
    """What to say where boto3's chain finds no key at all."""
    return UserError(f"cannot {operation}: no S3 credentials found", hint=credentials_hint())


def credentials_hint() -> str:
    """How this process gets keys: on a person's machine, or in a pod."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return (
            "make the Secret eosin-s3 in this namespace, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or name yours: the pipeline's s3_secret, cluster.s3.secret of training pods"
        )
    return (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket "
        "AWS_SKIP_SIGNATURE=true"
    )


def _checked_bundle(path: str | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise UserError(f"AWS_CA_BUNDLE={path} is not a file", hint="name a PEM file, or unset AWS_CA_BUNDLE")
    return path
