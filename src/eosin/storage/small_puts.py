"""Unconditional puts of small objects by libcurl, which take a fifth of the CPU of boto3's."""

from typing import Any
from urllib.parse import quote

from eosin.storage import s3_errors
from eosin.storage.clients import Clients
from eosin.storage.curl_client import Put
from eosin.storage.s3_errors import S3Request

SMALL_BYTES = 1 << 20
"""Larger bodies are worth a wait for the server's consent, which boto3 asks for."""

# A bucket of another region is told so.
_ELSEWHERE = (301, 307, 308, 400)


def put_small(clients: Clients, asked: S3Request, data: bytes) -> Any:
    """The answer to a PUT, in the form of boto3's `put_object`; `data` is signed by its digest.

    Where the server points elsewhere, boto3 follows. Raises as `s3_errors` tells it.
    """
    url = clients.bucket_url(asked.bucket) + quote(asked.key, safe="/~")
    put = Put(url, data, ("Expect:",))
    (answer,) = clients.curl.fetch([put], clients.signer(asked.bucket).headers_of)
    if answer.trouble:
        raise s3_errors.from_curl(asked, answer.trouble, answer.reason)
    if answer.status in _ELSEWHERE:
        return clients.boto.put_object(Bucket=asked.bucket, Key=asked.key, Body=data)
    if answer.status != 200:
        raise s3_errors.from_status(asked, answer.code, answer.status)
    lines = (line.decode("latin-1").partition(":") for line in answer.headers)
    fields = {name.lower(): value.strip() for name, _, value in lines}
    return {"ETag": fields.get("etag", ""), "ResponseMetadata": {"HTTPHeaders": fields}}
