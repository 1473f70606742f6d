"""Parameters of a compiled pipeline: their names and types, and the values given for them."""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from eosin.errors import UserError
from eosin.words import nearest_of, size_text

# What etcd takes by default; KFP refused a parameter of 1.6 MB, and took one of 24 kB.
_ETCD_REQUEST_BYTES = 3 << 19
_IMAGE = "_image"
_KINDS: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
_WORDS = {"NUMBER_INTEGER": "whole number", "NUMBER_DOUBLE": "number", "STRUCT": "mapping"}


def compiled_pipeline(name: str) -> Path:
    """A compiled pipeline that ships with eosin, by name, or a file by path. Raises `UserError`."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        with as_file(files("eosin_pipelines").joinpath(f"{name}.yaml")) as found:
            path = found
    if not path.is_file():
        known = ", ".join(pipeline_names())
        raise UserError(f"there is no compiled pipeline {name!r}", hint=f"one of {known}, or a file's path")
    return path


def pipeline_names() -> list[str]:
    """The pipelines that ship with eosin."""
    found = (Path(each.name) for each in files("eosin_pipelines").iterdir())
    return sorted(path.stem for path in found if path.suffix == ".yaml")


def takes(pipeline: Path) -> frozenset[str]:
    """Names of the parameters of a compiled pipeline."""
    return frozenset(_declared(pipeline))


def images_of_here(pipeline: Path) -> dict[str, Any]:
    """Values for a pipeline's image parameters where it runs without images, in this environment."""
    return {name: "this-environment" for name in _declared(pipeline) if name.endswith(_IMAGE)}


def arguments_of(pipeline: Path, given: dict[str, Any], texts: Iterable[str] = ()) -> dict[str, Any]:
    """`given` and the `NAME=VALUE` of `texts` as the pipeline's arguments.

    Raises `UserError` for a name it does not have (with the nearest), a value of another type, a
    required one that is not there, and one that is given both ways and not alike.
    """
    declared = _declared(pipeline)
    arguments = {name: value for name, value in given.items() if value is not None}
    for name, value in (_parsed(text, declared) for text in texts):
        before = arguments.get(name)
        if before and before != value and not name.endswith(_IMAGE):
            option = "--set" if name == "settings" else f"--{name}"
            raise UserError(
                f"--param {name} is {value!r}, and {option} says {before!r}", hint="keep one of them"
            )
        arguments[name] = value
    for name, value in arguments.items():
        _check(name, value, declared, pipeline)
    optional = {name for name, each in declared.items() if "defaultValue" in each or each.get("isOptional")}
    missing = sorted(set(declared) - optional - set(arguments))
    no_images = [name for name in missing if name.endswith(_IMAGE)]
    if others := [name for name in missing if name not in no_images]:
        raise UserError(
            f"pipeline {pipeline.stem} needs {', '.join(others)}",
            hint=" ".join(f"--param {name}=…" for name in others),
        )
    if no_images:
        raise UserError(
            f"pipeline {pipeline.stem} names no images: {', '.join(no_images)}",
            hint=f"`make publish REGISTRY=…` writes dist/pipelines/{pipeline.stem}.yaml, which names them: "
            "give that file instead, or " + " ".join(f"--param {name}=…" for name in no_images),
        )
    return arguments


def default_of(pipeline: Path, name: str) -> Any:
    """The default of a compiled pipeline's parameter; None where it has none, or no such parameter."""
    return _declared(pipeline).get(name, {}).get("defaultValue")


def pipeline_name(pipeline: Path) -> str:
    """What a compiled pipeline calls itself: eosin-pretrain."""
    return str(_specification(pipeline)["pipelineInfo"]["name"])


def own_pipeline(pipeline: Path) -> str:
    """Which of eosin's pipelines a compiled one is, wherever the file lies: pretrain; empty: none of them."""
    name = pipeline_name(pipeline).removeprefix("eosin-").replace("-", "_")
    return name if name in pipeline_names() else ""


def _declared(pipeline: Path) -> dict[str, dict[str, Any]]:
    return dict(_specification(pipeline)["root"].get("inputDefinitions", {}).get("parameters", {}))


def _specification(pipeline: Path) -> dict[str, Any]:
    try:
        spec: dict[str, Any] = next(iter(yaml.safe_load_all(pipeline.read_text())))
        spec["root"].get("inputDefinitions", {}).get("parameters", {})
        spec["pipelineInfo"]["name"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UserError(
            f"{pipeline} is not a compiled pipeline", hint="`make compile` writes them"
        ) from error
    return spec


def _parsed(text: str, declared: dict[str, dict[str, Any]]) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--param {text!r} is not of the form NAME=VALUE")
    kind = declared.get(name, {}).get("parameterType", "STRING")
    try:
        return name, value if kind == "STRING" else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--param {name}: {value!r} is not YAML") from error


def _check(name: str, value: Any, declared: dict[str, dict[str, Any]], pipeline: Path) -> None:
    if name not in declared:
        hint = nearest_of(name, sorted(declared))
        raise UserError(f"pipeline {pipeline.stem} has no parameter {name!r}", hint=hint)
    kind = declared[name]["parameterType"]
    wanted = _KINDS.get(kind, (object,))
    # A bool is an int to Python, never to a person.
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "BOOLEAN"):
        word = _WORDS.get(kind, kind.lower())
        raise UserError(f"parameter {name} of {pipeline.stem} is a {word}, not {value!r}")
    if isinstance(value, list) and None in value:
        raise UserError(f"parameter {name} of {pipeline.stem}: Kubeflow takes no null in a list")


def require_acceptable_size(path: Path, arguments: Mapping[str, Any]) -> None:
    """Raises `UserError` with the sizes where the API server would refuse the pipeline with these arguments.

    etcd takes requests of at most 1.5 MiB, and a Workflow holds the compiled pipeline and the arguments.
    """
    sizes = {name: len(json.dumps(value).encode()) for name, value in arguments.items()}
    pipeline_bytes = path.stat().st_size
    total_bytes = pipeline_bytes + sum(sizes.values())
    if total_bytes > _ETCD_REQUEST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"the arguments of {path.name} have {size_text(sum(sizes.values()))} (most of it {largest}, "
            f"{size_text(sizes[largest])}) and the pipeline {size_text(pipeline_bytes)}: a cluster takes "
            f"{size_text(_ETCD_REQUEST_BYTES)} of both together",
            hint="put what is long into a configuration in the bucket, and name that: --recipe URI",
        )
