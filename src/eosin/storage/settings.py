"""Settings of S3, read from the environment once a store is opened."""

import os
from dataclasses import dataclass, field

from eosin.errors import UserError
from eosin.storage.retry import RetryPolicy

DEFAULT_REGION = "us-east-1"
_TRUE = {"1", "true", "yes", "on"}
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
)


@dataclass(frozen=True)
class S3Access:
    """How one source is reached where that is not as the environment says; empty: as it says."""

    endpoint_url: str = ""
    region: str = ""
    profile: str = ""
    anonymous: bool | None = None


ENVIRONMENT = S3Access()


@dataclass(frozen=True)
class S3Settings:
    """Endpoint, region, timeouts and retries. Hashable: clients are shared among stores of equal settings.

    `credentials` holds the values of the variables that name credentials, only to tell two sets apart;
    the credentials themselves come from boto3's chain.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    named_profile: str | None = None
    """That of a source, which comes before keys in the environment; `profile` comes after them."""
    addressing_style: str = "auto"
    ca_bundle: str | None = None
    anonymous: bool = False
    timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    credentials: tuple[str | None, ...] = field(default=(), repr=False)

    @classmethod
    def from_env(cls, access: S3Access = ENVIRONMENT) -> "S3Settings":
        """Raises `UserError` for a value that cannot be meant."""
        env = os.environ
        endpoint_url = (
            access.endpoint_url or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
        )
        skips = env.get("AWS_SKIP_SIGNATURE", "").lower() in _TRUE and not access.profile
        return cls(
            endpoint_url=_checked_endpoint(endpoint_url),
            region=access.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None,
            profile=env.get("AWS_PROFILE") or None,
            named_profile=access.profile or None,
            addressing_style=_addressing_style(env.get("AWS_S3_ADDRESSING_STYLE"), endpoint_url),
            ca_bundle=env.get("AWS_CA_BUNDLE") or None,
            anonymous=skips if access.anonymous is None else access.anonymous,
            timeout_s=_timeout_s(env.get("EOSIN_S3_TIMEOUT_S")),
            retry=RetryPolicy.from_env(),
            credentials=tuple(env.get(name) for name in _CREDENTIAL_VARIABLES),
        )


def _checked_endpoint(url: str | None) -> str | None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise UserError(f"AWS_ENDPOINT_URL={url} is not a URL", hint="write http://HOST:PORT or https://HOST")
    return url.rstrip("/") if url else None


def _addressing_style(text: str | None, endpoint_url: str | None) -> str:
    style = (text or "").lower() or ("path" if endpoint_url else "auto")
    if style not in ("path", "virtual", "auto"):
        raise UserError(f"AWS_S3_ADDRESSING_STYLE={text} is unknown", hint="write path, virtual or auto")
    return style


def _timeout_s(text: str | None) -> float:
    try:
        timeout_s = float(text or 60)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise UserError(f"EOSIN_S3_TIMEOUT_S={text} is not a number above 0", hint="give seconds, such as 60")
    return timeout_s
