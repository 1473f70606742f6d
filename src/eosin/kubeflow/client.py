"""Connection to the API of Kubeflow Pipelines by kfp's own client, its errors in a person's words."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eosin.errors import MissingDependency, TransientError, UserError, why_unreachable

_PAGE = 100
_BUSY = {408, 429}


@contextmanager
def kubeflow_client(host: str, namespace: str = "") -> Iterator[Any]:
    """kfp's client for the API at `host` (empty: where kfp finds one), its errors in a person's words.

    `namespace` is the profile's on a Kubeflow of many users. Raises `MissingDependency` without kfp,
    `TransientError` where another try may help.
    """
    try:
        from kfp import Client
    except ImportError as error:
        raise MissingDependency("kfp", "kubeflow") from error
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError, LocationParseError

    warnings.filterwarnings("ignore", module="kfp")
    where = f"Kubeflow at {host or 'its default address'}"
    try:
        # What the client prints is no result of a command, and what it logs are tracebacks.
        logging.disable(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            client = Client(host=host or None, namespace=namespace or "kubeflow")
            if namespace:
                client._context_setting["namespace"] = namespace
            yield client
    except ApiException as error:
        status = int(error.status or 0)
        if status >= 500 or status in _BUSY or status == 0:
            raise TransientError(f"{where} answered {status} {error.reason}") from error
        hint = "log in, or name the profile's --namespace" if status in (401, 403) else ""
        raise UserError(f"{where} answered {status} {error.reason}: {_said(error)}", hint=hint) from error
    except LocationParseError as error:
        raise UserError(f"{host!r} is no address of Kubeflow", hint="--host http://HOST:PORT") from error
    except (HTTPError, OSError) as error:
        pool, path = getattr(error, "pool", None), getattr(error, "url", None)
        tried = (
            f"{pool.scheme}://{pool.host}:{pool.port}{path or ''}" if pool else host or "its default address"
        )
        of_kfp = type(error) is TimeoutError  # its health check, tried five times
        why = "something answers, and not as Kubeflow Pipelines does" if of_kfp else why_unreachable(error)
        raise TransientError(
            f"Kubeflow cannot be reached: {tried}: {why}",
            hint="kubectl -n kubeflow port-forward svc/ml-pipeline 8888, then --host http://localhost:8888"
            " (or KF_PIPELINES_ENDPOINT); the same command again",
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def pages_of(page_of: Callable[..., Any], field: str, experiment_id: str | None) -> Iterator[Any]:
    """Every object that `page_of`, a listing call of kfp's client, finds in the experiment (None: in all)."""
    token = ""
    while True:
        page = page_of(experiment_id=experiment_id, page_size=_PAGE, page_token=token)
        yield from getattr(page, field) or []
        token = page.next_page_token or ""
        if not token:
            return


def _said(error: Any) -> str:
    """The sentence in the body of the API's error."""
    try:
        body = json.loads(error.body)
        return str(body.get("error_message") or body.get("message") or body)
    except (ValueError, TypeError, AttributeError):
        return str(error.body or "")[:200]
