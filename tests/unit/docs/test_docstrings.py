"""Every public class, function and method of the sources says what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[3] / "src/eosin"
# What Python itself describes: the file object that a library is given.
OF_PYTHON = {"readable", "seekable", "tell", "seek", "readinto", "readall"}


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    trees = {path: ast.parse(path.read_text()) for path in sorted(SOURCES.rglob("*.py"))}
    described = {name for tree in trees.values() for name in _described_by_protocols(tree)}
    for path, tree in trees.items():
        for name, node, owner in _public(tree):
            if not ast.get_docstring(node) and not (owner and node.name in described | OF_PYTHON):
                missing.append(f"{path.relative_to(SOURCES)}:{node.lineno} {name}")
    assert not missing


def test_the_first_line_of_a_docstring_is_a_whole_thought() -> None:
    wrong = []
    for path in sorted(SOURCES.rglob("*.py")):
        for name, node, _ in _public(ast.parse(path.read_text())):
            first = (ast.get_docstring(node) or ".").split("\n\n")[0].strip()
            if not first or first[-1] not in ".?:;…)`":
                wrong.append(f"{path.relative_to(SOURCES)}: {name}: {first[-40:]!r}")
    assert not wrong


Public = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Public, bool]]:
    """(dotted name, node, whether a class owns it) of public names; overloads and setters are of another."""
    for child in getattr(node, "body", []):
        if not isinstance(child, Public) or child.name.startswith("_"):
            continue
        decorators = {ast.unparse(each) for each in child.decorator_list}
        if any(each == "overload" or each.endswith(".setter") for each in decorators):
            continue
        yield prefix + child.name, child, bool(prefix)
        if isinstance(child, ast.ClassDef):
            yield from _public(child, f"{prefix}{child.name}.")


def _described_by_protocols(tree: ast.Module) -> Iterator[str]:
    """Methods that a protocol describes, or a base class that leaves them open, for all who implement it."""
    for name, node, _ in _public(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        is_protocol = "Protocol" in {ast.unparse(base).split("[")[0] for base in node.bases}
        for _, each, _ in _public(node, f"{name}."):
            if ast.get_docstring(each) and (is_protocol or "raise NotImplementedError" in ast.unparse(each)):
                yield each.name
