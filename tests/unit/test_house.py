"""Rules of the source that no linter knows: one meaning a name, and first lines that say what a module is."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "eosin"
# Verbs of the command line and steps are called as what they do elsewhere: `steps.train` calls `train`.
_VERBS = ("cli", "steps.py", "run_control.py")
# A question, a preposition or a whole sentence is no name that anybody searches for.
_NO_NOUN = {
    "What", "How", "Which", "Whether", "Who", "Where", "When", "Why", "Is", "From", "Refuse", "Read", "Write",
    "Say", "Merge",
}  # fmt: skip
_LINE_CHARS = 110


def modules(*folders: Path) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders or (SOURCE,):
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def public(kind: type | tuple[type, ...], *, verbs: bool) -> dict[str, list[str]]:
    """Where each public name of a kind is defined at the top of a module."""
    found = defaultdict(list)
    for path, tree in modules():
        parts = path.relative_to("src/eosin").parts
        if not verbs and parts[0] in _VERBS:
            continue
        for node in tree.body:
            name = getattr(node, "name", "_")
            if isinstance(node, kind) and not name.startswith("_") and name != "main":
                found[name].append(str(path))
    return found


def test_no_class_name_has_two_meanings() -> None:
    twice = {name: paths for name, paths in public(ast.ClassDef, verbs=True).items() if len(paths) > 1}
    assert not twice


def test_no_class_of_one_module_is_called_as_that_of_another() -> None:
    found = defaultdict(list)
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_only_the_records_put_on_a_condition() -> None:
    """A load, a publish once and a compare-and-swap are `records.base`; `doctor` tries the store itself."""
    apart = (
        "src/eosin/storage",
        "src/eosin/records/base.py",
        "src/eosin/doctor.py",
        "src/eosin/index/sources.py",
    )
    wrong = []
    for path, tree in modules():
        if str(path).startswith(apart):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("if_none_match", "if_match"):
                wrong.append(f"{path}:{node.value.lineno}")
    assert not wrong


def test_no_function_name_has_two_meanings() -> None:
    functions = public((ast.FunctionDef, ast.AsyncFunctionDef), verbs=False)
    assert not {name: paths for name, paths in functions.items() if len(paths) > 1}


def test_every_module_begins_with_what_it_is() -> None:
    wrong = []
    for path, tree in modules():
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        if not first or len(first) > _LINE_CHARS or first.split()[0].strip(",:;") in _NO_NOUN:
            wrong.append(f"{path}: {first}")
    assert not wrong, "\n".join(wrong)


def test_every_excuse_from_the_type_checker_names_its_kind() -> None:
    excuse = re.compile(r"# type: ignore(?!\[[a-z][a-z, -]*\])")
    paths = [*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if excuse.search(line)
    ]


def test_every_excuse_in_what_is_shared_says_why() -> None:
    bare = re.compile(r"# type: ignore\[[^]]*\](?!  # \w)")
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in (SOURCE, ROOT / "benchmarks", ROOT / "tests" / "support")
        for path in folder.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if bare.search(line)
    ]


def test_timm_is_imported_after_torchvisions_operators_are_declared() -> None:
    """Where torchvision's build is not torch's, a module that begins with timm cannot come first."""
    wrong = []
    for path, tree in modules():
        declared = False
        for node in tree.body:
            declared |= ast.unparse(node) == "import_timm()"
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if not declared and any(name.partition(".")[0] == "timm" for name in names):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong
