"""Other runs to stand beside: what their own reports say of the same tasks."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from eosin.config import RunConfig
from eosin.errors import EosinError, TransientError
from eosin.layout import RunLayout
from eosin.storage import NotFound, open_store
from eosin.summary.results import Result
from eosin.summary.training_log import Cost, Event, date_of

# A folder with more runs than this is looked through no further: a report is not a search.
_MAX_SIBLINGS = 200
_READS_AT_ONCE = 8
_RESULTS, _COST = TypeAdapter(tuple[Result, ...]), TypeAdapter(Cost | None)


@dataclass(frozen=True)
class EarlierRun:
    """Another run, as far as its summary.json tells."""

    uri: str
    recipe: str
    began: str
    """ISO date and time (UTC) of its first event; empty where it logged nothing."""
    results: tuple[Result, ...]
    cost: Cost | None = None
    """None where it did not train, or by an eosin that did not tell."""

    @property
    def name(self) -> str:
        """The last part of its URI."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]


def read_earlier(
    run_uri: str, config: RunConfig, events: Sequence[Event], problems: list[str]
) -> tuple[EarlierRun, ...]:
    """The runs that `evaluate.compare_with` names, then the newest in the same folder begun before this one.

    A named run that cannot be read is a line in `problems`; one that merely lies in the same folder and
    has no report is passed over. Raises `TransientError` where the store does not answer.
    """
    named = [_named(uri, problems) for uri in config.evaluate.compare_with]
    began = date_of(events[0].time_s) if events else ""
    known = {run_uri.rstrip("/"), *(uri.rstrip("/") for uri in config.evaluate.compare_with)}
    siblings: list[EarlierRun] = []
    if config.evaluate.num_earlier_runs:
        siblings = [run for run in _siblings(run_uri, known) if not began or run.began < began]
    newest = sorted(siblings, key=lambda run: (run.began, run.name), reverse=True)
    return (*(run for run in named if run), *newest[: config.evaluate.num_earlier_runs])


@dataclass(frozen=True)
class MeasuredSpeed:
    """How fast a worker of a node pool was in an earlier run."""

    images_per_worker_hour: float
    run: str
    """Its URI."""
    alone: bool
    """Whether no other pool took part; else it is the mean over the workers of all."""


def measured_speeds(run_uri: str, recipe: str) -> dict[str, MeasuredSpeed]:
    """Pool → its speed in the newest run of `recipe` in the same folder that tells it; alone, where one does.

    Pools go by their names. Raises `TransientError` where the store does not answer.
    """
    found: dict[str, MeasuredSpeed] = {}
    for run in sorted(_siblings(run_uri, {run_uri.rstrip("/")}), key=lambda run: run.began):
        cost = run.cost
        if run.recipe != recipe or cost is None or not cost.worker_hours:
            continue
        mean = cost.num_images / cost.worker_hours
        for pool in cost.pools:
            alone = pool.images_per_worker_hour
            if alone is not None:
                found[pool.pool] = MeasuredSpeed(alone, run.uri, alone=True)
            elif pool.worker_hours and not (pool.pool in found and found[pool.pool].alone):
                found[pool.pool] = MeasuredSpeed(mean, run.uri, alone=False)
    return found


def _named(uri: str, problems: list[str]) -> EarlierRun | None:
    try:
        return _read(uri)
    except TransientError:
        raise
    except NotFound:
        problems.append(f"{uri}, named in evaluate.compare_with, has no report to compare with")
    except EosinError as error:
        problems.append(f"{uri}, named in evaluate.compare_with: {error.message}")
    except ValueError:
        problems.append(
            f"the report of {uri}, named in evaluate.compare_with, is damaged or of another eosin"
        )
    return None


def _siblings(run_uri: str, known: set[str]) -> Iterator[EarlierRun]:
    parent, _, _ = run_uri.rstrip("/").rpartition("/")
    try:
        names = list(open_store(parent).folders())[:_MAX_SIBLINGS]
    except TransientError:
        raise
    except EosinError:
        return  # who may read a run need not be allowed to list its neighbours
    uris = [uri for name in names if (uri := f"{parent}/{name}") not in known]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        yield from (run for run in pool.map(_if_readable, uris) if run)


def _if_readable(uri: str) -> EarlierRun | None:
    try:
        return _read(uri)
    except TransientError:
        raise
    except (NotFound, EosinError, ValueError):
        return None


def _read(uri: str) -> EarlierRun:
    """Raises `NotFound`, `EosinError`, or ValueError for bytes that are no summary of this kind."""
    data = open_store(uri).get(RunLayout.SUMMARY_JSON)
    try:
        summary = json.loads(data)
        return EarlierRun(
            uri=uri,
            recipe=str(summary["recipe"]),
            began=str(summary["provenance"]["first_event"] or ""),
            results=_RESULTS.validate_python(summary["results"]),
            cost=_COST.validate_python(summary.get("cost")),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError(uri) from error
