"""Child process of `eosin run --local`: a compiled pipeline run by `kfp.local`.

`python -m eosin.kubeflow.local_runner JSON`; what it prints is read by the parent (`local_run`), which shows
progress and keeps the rest as a log.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from eosin.errors import MissingDependency

RUNNER_PID = "EOSIN_RUNNER_PID"


def run_here(pipeline: Path, arguments: dict[str, Any], work_dir: Path) -> None:
    """Run a compiled pipeline with `kfp.local`, each task a subprocess of this interpreter."""
    try:
        from kfp import components, local
    except ImportError as error:
        raise MissingDependency("kfp", "kubeflow") from error
    # kfp warns of images without "python" in their name; here the image is not used at all.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    os.environ[RUNNER_PID] = str(os.getpid())
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(work_dir))
    components.load_component_from_file(str(pipeline))(**arguments)


def main() -> None:
    """Child process: one argument, JSON {pipeline, arguments, work_dir}."""
    request = json.loads(sys.argv[1])
    run_here(Path(request["pipeline"]), request["arguments"], Path(request["work_dir"]))


if __name__ == "__main__":
    main()
