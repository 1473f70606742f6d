"""Submit a compiled pipeline, one run at a time: `python -m eosin_pipelines.submit`, which a schedule runs.

Safe to repeat: while a run of the same experiment is going, and where the day's run is there already,
nothing is submitted.
"""

import argparse
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from eosin.errors import EosinError, TransientError, UserError, describe, exit_code_of

_GOING = {"PENDING", "RUNNING", "PAUSED", "CANCELING"}
_PAGE = 100


def submit(
    client: Any, pipeline: Path, *, experiment: str, run_uri: str, parameters: dict[str, Any], day: date
) -> str:
    """Create the run of `day` unless one is going or was made before; returns what was done, for a person.

    `run_uri` holds `{date}`; the run of one day has one name, so that a retried submission finds it.
    """
    uri = run_uri.replace("{date}", day.isoformat())
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    experiment_id = client.create_experiment(experiment).experiment_id
    for run in _runs(client, experiment_id):
        if run.state in _GOING:
            return f"{run.display_name} is still {run.state.lower()}: nothing submitted"
        if run.display_name == name and run.state == "SUCCEEDED":
            return f"{name} has succeeded before: nothing submitted"
    given = {key: value for key, value in parameters.items() if value != ""}
    made = client.create_run_from_pipeline_package(
        str(pipeline), arguments={"run": uri, **given}, run_name=name, experiment_id=experiment_id
    )
    return f"submitted {name} as {made.run_id}"


def pipeline_file(name: str) -> Path:
    """A compiled pipeline of this package by name, or a file by path. Raises `UserError`."""
    path = Path(name) if "/" in name or name.endswith(".yaml") else Path(__file__).parent / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in Path(__file__).parent.glob("*.yaml")))
        raise UserError(f"no compiled pipeline {name}", hint=f"one of {known}, or the path of a file")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where submitted or rightly not, 2 for a user's error, 75 where Kubeflow is out of reach."""
    parser = argparse.ArgumentParser(prog="python -m eosin_pipelines.submit", description=__doc__)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--namespace", default=None)
    parser.add_argument("--run", required=True, help="URI with {date} in it")
    parser.add_argument("--parameters", default="{}", help="a JSON object")
    options = parser.parse_args(arguments)
    try:
        print(_submit(options))
        return 0
    except EosinError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return exit_code_of(error)


def _submit(options: argparse.Namespace) -> str:
    parameters = _parameters(options.parameters)
    pipeline = pipeline_file(options.pipeline)
    if "{date}" not in options.run:
        raise UserError(f"--run {options.run} has no {{date}}: every run would be the same one")
    from kfp import Client
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        client = Client(host=options.host, namespace=options.namespace or "kubeflow")
        if options.namespace:
            client.set_user_namespace(options.namespace)
        return submit(
            client,
            pipeline,
            experiment=options.experiment,
            run_uri=options.run,
            parameters=parameters,
            day=datetime.now(UTC).date(),
        )
    except ApiException as error:
        kind = TransientError if (error.status or 0) >= 500 else UserError
        raise kind(f"Kubeflow at {options.host} answered {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise TransientError(f"Kubeflow at {options.host} cannot be reached: {error}") from error


def _parameters(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"--parameters is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError("--parameters must be a JSON object of the pipeline's parameters")
    return found


def _runs(client: Any, experiment_id: str) -> list[Any]:
    """Every run of the experiment."""
    runs: list[Any] = []
    token = ""
    while True:
        page = client.list_runs(experiment_id=experiment_id, page_size=_PAGE, page_token=token)
        runs += page.runs or []
        token = page.next_page_token or ""
        if not token:
            return runs


if __name__ == "__main__":
    sys.exit(main())
