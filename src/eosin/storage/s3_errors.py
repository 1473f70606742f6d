"""Errors of S3 requests in our own three kinds, naming operation, bucket and key."""

from dataclasses import dataclass

from eosin.errors import PermanentError, TransientError, UserError
from eosin.storage.base import AccessDenied, NotFound, PreconditionFailed
from eosin.storage.clients import no_credentials

_TRANSIENT_CODES = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_KEY_HINT = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary keys, AWS_SESSION_TOKEN"
_REGION_HINT = "set AWS_REGION to the region of the bucket"
_CREDENTIAL_CODES = {
    "InvalidAccessKeyId": ("the access key is unknown there", _KEY_HINT),
    "SignatureDoesNotMatch": ("the secret key is wrong", _KEY_HINT),
    "ExpiredToken": ("the credentials have expired", "get new ones and run the same command again"),
    "InvalidToken": ("the session token is wrong", _KEY_HINT),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock"),
    "AuthorizationHeaderMalformed": ("the request is signed for another region", _REGION_HINT),
    "PermanentRedirect": ("the bucket lies in another region", _REGION_HINT),
    "IllegalLocationConstraintException": ("the bucket lies in another region", _REGION_HINT),
}  # fmt: skip


@dataclass(frozen=True)
class S3Request:
    """What was asked, for the message."""

    operation: str
    bucket: str
    key: str
    endpoint: str

    @property
    def target(self) -> str:
        """URI of what was asked for."""
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"

    @property
    def failed(self) -> str:
        """The beginning of every message about it."""
        return f"cannot {self.operation} {self.target}"


def from_status(request: S3Request, code: str, status: int, detail: str = "") -> Exception:
    """The error for an answer of the server: its S3 error `code` and HTTP `status`."""
    if code == "NoSuchBucket":
        return missing_bucket(request)
    if code == "InvalidBucketName":
        return UserError(
            f"{request.failed}: {request.bucket!r} cannot name a bucket",
            hint="3 to 63 lower-case letters, digits, dots and hyphens",
        )
    if code in ("NoSuchKey", "NoSuchUpload") or status == 404:
        return NotFound(request.key, code)
    if code == "PreconditionFailed" or status == 412:
        return PreconditionFailed(f"{request.target} is not the version that was expected")
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES:
        return TransientError(f"{request.failed}: {request.endpoint} answered {code or status}")
    if code in _CREDENTIAL_CODES:
        reason, hint = _CREDENTIAL_CODES[code]
        return UserError(f"{request.failed}: {reason} ({code})", hint=hint)
    if status in (401, 403):
        return AccessDenied(
            f"{request.failed}: permission denied ({code or 'Forbidden'})",
            hint=f"the key in use needs the right to {request.operation} under this prefix; {_KEY_HINT}",
        )
    if status == 501:
        return UserError(
            f"{request.failed}: {request.endpoint} does not implement it",
            hint="eosin needs conditional puts (If-None-Match, If-Match)",
        )
    return PermanentError(f"{request.failed}: {code or status} {detail}".rstrip())


def missing_bucket(request: S3Request) -> UserError:
    """There is no such bucket."""
    return UserError(
        f"{request.failed}: there is no bucket {request.bucket} at {request.endpoint}",
        hint=f"check the name, or make it: aws s3 mb s3://{request.bucket}",
    )


def from_boto(request: S3Request, error: Exception) -> Exception:
    """The error for what boto3 raised; an exception of another origin comes back as it is."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        answer = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(answer.get("Code", ""))
        return from_status(request, "" if code.isdigit() else code, status, str(answer.get("Message", "")))
    if isinstance(error, boto.NoCredentialsError):
        return no_credentials(f"{request.operation} {request.target}")
    if isinstance(error, boto.SSLError) and "CERTIFICATE" in str(error).upper():
        return untrusted(request)
    if isinstance(error, _connection_errors()):
        return unreachable(request, _short(f"{type(error).__name__}: {error}"))
    if isinstance(error, boto.BotoCoreError):
        return UserError(f"{request.failed}: {error}")
    return error


def from_curl(request: S3Request, code: int, reason: str) -> Exception:
    """The error for a request that no server answered: libcurl's `code`, and what it says."""
    import pycurl

    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        return untrusted(request)
    if code == pycurl.E_FILESIZE_EXCEEDED:
        return ignored_range(request)
    if code in (pycurl.E_SSL_CACERT_BADFILE, pycurl.E_URL_MALFORMAT, pycurl.E_UNSUPPORTED_PROTOCOL):
        return UserError(f"{request.failed}: {_short(reason)}", hint="check the AWS_* environment variables")
    # Refused, reset, timed out or cut short: worth another try.
    return unreachable(request, _short(reason))


def ignored_range(request: S3Request) -> PermanentError:
    """A part was asked for and something else came."""
    return PermanentError(
        f"{request.failed}: asked for a part of it, got something else",
        hint=f"{request.endpoint}, or a proxy before it, ignores byte ranges",
    )


def unreachable(request: S3Request, reason: str) -> TransientError:
    """No server answered; `reason` is the client's."""
    return TransientError(
        f"{request.failed}: {request.endpoint} does not answer ({reason})",
        hint="check that the endpoint is up and AWS_ENDPOINT_URL names it",
    )


def untrusted(request: S3Request) -> UserError:
    """The server's certificate is not trusted."""
    return UserError(
        f"{request.failed}: the certificate of {request.endpoint} is not trusted",
        hint="set AWS_CA_BUNDLE to the PEM file of the authority that signed it; a certificate that is "
        "itself marked as an authority (CA:TRUE) cannot be a server's",
    )


def short_body(request: S3Request, wanted: int, got: int) -> TransientError:
    """The answer ended before its announced length."""
    return TransientError(f"{request.failed}: the answer had {got} of {wanted} bytes")


def _connection_errors() -> tuple[type[Exception], ...]:
    import botocore.parsers
    import urllib3.exceptions
    from botocore import exceptions as boto

    return (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        boto.ChecksumError,
        botocore.parsers.ResponseParserError,
        urllib3.exceptions.HTTPError,
        ConnectionError,
        TimeoutError,
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}..."
