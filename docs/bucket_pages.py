"""Pages of docs/reference/ on what lies in the bucket: keys, records with their JSON schemas, columns."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel

import eosin
from eosin import layout
from eosin.index.rows import SCHEMA as INDEX_SCHEMA
from eosin.records.base import Record
from eosin.records.patchset_shard import _SCHEMA as PATCH_SCHEMA

LAYOUTS = {
    "IndexLayout": (
        "An index",
        "`s3://bucket/indexes/NAME`: every scan adds a snapshot, and none is changed.",
    ),
    "RunLayout": (
        "A run",
        "`s3://bucket/runs/NAME`; a study is a folder of runs with a few keys of its own.",
    ),
    "FeaturesLayout": ("Features", "`--out` of `eosin embed`: one file a slide."),
    "ClustersLayout": ("Clusters", "`--out` of `eosin curate`: which patch is of which kind."),
    "RegistryLayout": ("A registry", "`s3://bucket/registry`: one object a model name."),
}
T = TypeVar("T", bound=BaseModel)
INDEX_COLUMNS = {
    "slide": "Key of the slide's main object, relative to the slides URI.",
    "status": "ok, or the reason why it is not used.",
    "detail": "A sentence on it; a remark where the status is ok.",
    "vendor": "Of the scanner, as the header says it.",
    "format": "svs, tiff, ome-tiff, philips-tiff, dicom, or OpenSlide's name of the vendor.",
    "access": "range: its tiles are read by byte range; local: it is staged whole.",
    "mpp_x": "Micrometres a pixel of level 0, along x; null where it is not known.",
    "mpp_y": "The same along y.",
    "mpp_source": "header, override, or empty.",
    "objects": "The objects that the slide is made of.",
    "levels": "The pyramid, finest first: sizes, compression, and the first tile in the tile table.",
    "tissue": "The mask: bits packed by row (numpy.packbits), then zstd; its pixels in level-0 pixels.",
    "tissue_mm2": "Area of tissue, mm².",
    "patient": "From the overrides, or from what its source says.",
    "cohort": "The same.",
    "labels": "JSON object of labels by name, from the overrides.",
    "extra": "JSON object of columns of the overrides that eosin gives no meaning to.",
    "digest": "Names the object of tile table and thumbnail.",
    "reuse_digest": "Of all that reading the slide depended on; equal: the row is kept by the next scan.",
    "read_status": "The status before `exclude` of the overrides.",
    "read_detail": "The detail before it.",
    "has_thumbnail": "Whether a thumbnail was published.",
    "content": "Of what is on the slide, whatever its name: equal on copies.",
    "uri": "The slide's own.",
    "source": "Name of its source; empty where the slides are one folder.",
    "credentials": "Name of what its source is read with, never a secret: anonymous, a profile, environment.",
    "contours": "URI of the GeoJSON that its mask was drawn from; empty where tissue was found on the slide.",
    "origin_x_px": "Corner of what was scanned, from which QuPath counts; 0 but for some staged formats.",
    "origin_y_px": "The same along y.",
    "mask_start": "Where the mask's bits begin in masks.bin; -1 for none, or where they stand in `tissue`.",
    "mask_bytes": "How many they are.",
}
PATCH_COLUMNS = {
    "image": "PNG or JPEG bytes, RGB.",
    "slide": "Key of the slide.",
    "patient": "As the index has it; empty where none is known.",
    "x_px": "Left edge in the level-0 frame, pixels.",
    "y_px": "Top edge in the level-0 frame, pixels.",
    "mpp": "Magnification, µm a pixel.",
    "foreground": "Share of tissue, 0 to 1.",
    "label": "Empty: not labelled.",
    "split": "train, val, test, or empty.",
    "sha256": "Of `image`.",
}
# Written into memory or for processes of one machine alone.
_NOT_IN_A_BUCKET = {"Piece"}


def bucket_layout() -> str:
    """Every key, from layout.py, and the columns of the two kinds of Parquet objects."""
    lines = [
        "# What lies in the bucket",
        "",
        "Two URIs name everything, an index and a run; a registry is a third. Keys are relative to them.",
        "CAPITALS stand for a name or number, XX for the first two characters of what follows.",
        "Linked names are [records](records.md).",
        "",
        "What takes several objects is complete once its marker is there, and the marker is published last.",
        "Whatever else lies under a URI is not eosin's and is left alone.",
        "",
    ]
    for name, (title, sentence) in LAYOUTS.items():
        lines += [f"## {title}", "", sentence, "", "| key | what it is |", "|---|---|"]
        lines += [f"| `{key}` | {_linked(meaning)} |" for key, meaning in keys(name)]
        lines.append("")
    lines += ["## Columns of slides.parquet", "", *_columns(INDEX_SCHEMA, INDEX_COLUMNS)]
    lines += [
        "",
        "## Columns of a patch set's Parquet shards",
        "",
        *_columns(PATCH_SCHEMA, PATCH_COLUMNS),
        "",
    ]
    return "\n".join(lines)


def keys(name: str) -> list[tuple[str, str]]:
    """(pattern, meaning) of every key of a class of layout.py, sorted."""
    module = ast.parse(inspect.getsource(layout))
    constants = {
        target.id: str(node.value.value)
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    body = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name).body
    return sorted([*_constant_keys(body), *_method_keys(body, constants)])


def records() -> str:
    """Every record: where it lies is in the layout; here its fields."""
    lines = [
        "# Records",
        "",
        "JSON objects that one step publishes and another reads, each with a JSON schema. A reader ignores",
        "fields that it does not know, so an older eosin still reads what a newer one has written.",
        "",
    ]
    for record in published_records():
        lines += [f"## {record.__name__}", "", _flat(record.__doc__ or ""), ""]
        lines += [f"[JSON schema](schemas/{record.__name__}.json)", ""]
        lines += [*_fields(record), ""]
        for part in _parts(record):
            lines += [f"**{part.__name__}**: {_flat(part.__doc__ or 'one of the entries above.')}", ""]
            lines += [*_fields(part), ""]
    return "\n".join(lines)


def schemas() -> dict[str, str]:
    """File name and text of the JSON schema of every record."""
    return {
        f"schemas/{record.__name__}.json": json.dumps(record.model_json_schema(), indent=2) + "\n"
        for record in published_records()
    }


def published_records() -> list[type[Record]]:
    """Every kind of record that lies in a bucket, by name."""
    for module in pkgutil.walk_packages(eosin.__path__, "eosin."):
        if not module.name.startswith(("eosin.cli", "eosin.demo", "eosin.kubeflow", "eosin.__main__")):
            importlib.import_module(module.name)
    found = {kind for kind in _subclasses(Record) if kind.__name__ not in _NOT_IN_A_BUCKET}
    return sorted(found, key=lambda kind: kind.__name__)


def _constant_keys(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
            continue
        key = str(node.value.value)
        if not key.endswith("/"):
            yield key, _docstring_after(after)


def _method_keys(body: list[ast.stmt], constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef):
            continue
        last = node.body[-1]
        pattern = _pattern(last.value, constants) if isinstance(last, ast.Return) else ""
        if pattern:
            yield pattern, _flat(ast.get_docstring(node) or "")


def _pattern(value: ast.expr | None, constants: dict[str, str]) -> str:
    """The key that an f-string builds, arguments in capitals (XX: their first two characters); empty where it
    is no plain f-string."""
    if not isinstance(value, ast.JoinedStr):
        return ""
    text = ""
    for part in value.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif isinstance(part, ast.FormattedValue):
            name = next((node.id for node in ast.walk(part.value) if isinstance(node, ast.Name)), "")
            if isinstance(part.value, ast.Call):
                return ""
            text += constants.get(name, "XX" if isinstance(part.value, ast.Subscript) else name.upper())
    return text


def _docstring_after(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return _flat(str(node.value.value))
    return ""


def _columns(schema: pa.Schema, meanings: dict[str, str]) -> list[str]:
    """Raises KeyError for a column without a meaning."""
    rows = [f"| `{each.name}` | {each.type} | {meanings[each.name]} |" for each in schema]
    return ["| column | type | meaning |", "|---|---|---|", *rows]


def _fields(model: type[BaseModel]) -> list[str]:
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        lines.append(f"| `{name}` | {_type_text(field.annotation)} | {_flat(field.description or '')} |")
    return lines


def _type_text(annotation: object) -> str:
    text = (
        annotation.__name__
        if isinstance(annotation, type) and "[" not in str(annotation)
        else str(annotation)
    )
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Za-z]+)", r"\1", text)
    return text.replace("|", "or").replace("NoneType", "null").replace("None", "null")


def _parts(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that fields are made of, each once."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for part in _models(field.annotation):
            for each in (part, *_parts(part), *_subclasses(part)):
                if each not in found:
                    found.append(each)
    return found


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    from typing import get_args

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _subclasses(kind: type[T]) -> Iterator[type[T]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith("eosin."):
            yield each
        yield from _subclasses(each)


def _linked(text: str) -> str:
    names = {record.__name__ for record in published_records()}
    return re.sub(
        r"`([A-Z][A-Za-z]+)`",
        lambda match: f"[`{match[1]}`](records.md#{match[1].lower()})" if match[1] in names else match[0],
        text,
    )


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
