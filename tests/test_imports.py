"""Data flows one way: a module imports only from what stands before it in the order below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import analognoise
from analognoise import conversion

PACKAGE = Path(analognoise.__file__).parent
ORDER = [
    *(
        "errors",
        "compiled",
        "allocator",
        "scalars",
        "units",
        "seeds",
        "files",
        "processes",
        "progress",
        "printing",
        "batches",
        "halving",
        "fingerprint",
        "culprit",
        "pool",
        "metrics",
        "devices",
        "crossbar",
        "layers",
        "obstacles",
        "convertible",
        "patterns",
        "copying",
        "on_tiles",
        "conversion",
        "chip",
        "calibration",
        "chip_file",
        "macs",
        "description",
        "quantized",
        "memory",
        "computing",
        "sparsity",
    ),
    *(
        "training",
        "report",
        "fitting",
        "evaluation",
        "landscape",
        "tasks",
        "comparison",
        "interop",
        "jobs",
        "options",
        "cli",
        "__main__",
    ),
]
# Neither may know the other, although the order alone would let evaluation import training.
STRANGERS = {("evaluation", "training"), ("training", "evaluation")}


def modules() -> dict[str, Path]:
    """Dotted name, as in ``analognoise.devices.curves``, and file of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module of analognoise that a source names, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from analognoise import units` names a module, `from analognoise.units import x` does not.
            names = [
                inner if (inner := f"{origin}.{alias.name}") in known else f"{origin}:{alias.name}"
                for alias in node.names
            ]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, (ast.Name, ast.Attribute))
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [str(node.args[0].value)]
        else:
            continue
        for name in names:
            if name.split(".")[0].split(":")[0] == "analognoise":
                yield node.lineno, name


def rank(module: str) -> int | None:
    """Place of a module in the order; None for the map of public names itself."""
    parts = module.split(":")[0].split(".")
    if len(parts) == 1:
        return None
    assert parts[1] in ORDER, f"{module} has no place in the import order: give it one in {__file__}"
    return ORDER.index(parts[1])


def violations(source: str, module: str, is_package: bool, known: set[str]) -> list[str]:
    """One sentence for every import that goes the wrong way."""
    found = []
    for line, name in imports(source, module, is_package, known):
        own, theirs = rank(module), rank(name)
        if theirs is None:
            # The map of public names imports everything, so only the version may be taken from it.
            if name != "analognoise:__version__" and own is not None:
                found.append(f"{module}:{line} imports {name} from the map of public names")
        elif own is not None and (theirs > own or (ORDER[own], ORDER[theirs]) in STRANGERS):
            found.append(f"{module}:{line} imports {name}, which it must not know")
    return found


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_from_what_stands_before_it(module: str) -> None:
    known = modules()
    path = known[module]
    assert violations(path.read_text(), module, path.name == "__init__.py", set(known)) == []


def test_no_two_modules_import_each_other() -> None:
    known = modules()
    graph = {
        module: {
            name
            for _, found in imports(path.read_text(), module, path.name == "__init__.py", set(known))
            if (name := found.split(":")[0]) != module
        }
        for module, path in known.items()
        if module != "analognoise"  # the map of public names
    }
    for targets in graph.values():
        targets.discard("analognoise")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "is_package", "source", "wrong"),
    [
        ("analognoise.units", False, "from analognoise.devices.profile import DeviceProfile", True),
        ("analognoise.units", False, "def f():\n    import analognoise.chip", True),
        ("analognoise.units", False, "from . import chip", True),
        ("analognoise.devices.curves", False, "from ..chip import program_", True),
        ("analognoise.devices", True, "from ..chip import program_", True),
        ("analognoise.devices.curves", False, "importlib.import_module('analognoise.cli')", True),
        ("analognoise.evaluation.store", False, "from analognoise.training.fit import fit", True),
        ("analognoise.training.fit", False, "from analognoise.evaluation import store", True),
        ("analognoise.cli", False, "from analognoise import load_profile", True),
        ("analognoise.cli", False, "from analognoise import __version__", False),
        ("analognoise.devices.catalog", False, "from analognoise.devices.profile import X", False),
        ("analognoise.devices.catalog", False, "from . import profile\nfrom .profile import X", False),
        ("analognoise.chip", False, "from analognoise import units\nimport torch", False),
    ],
)
def test_the_check_tells_wrong_from_right(module: str, is_package: bool, source: str, wrong: bool) -> None:
    known = {*modules(), "analognoise.chip", "analognoise.evaluation.store", "analognoise.devices.profile"}
    assert bool(violations(source, module, is_package, known)) is wrong


def test_what_is_on_tiles_is_asked_of_its_own_module() -> None:
    """``conversion`` passes those names on to callers outside of the package alone."""
    root = Path(analognoise.__file__).parent
    wrong = [
        f"{path.relative_to(root)}: {alias.name}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "analognoise.conversion"
        for alias in node.names
        if getattr(getattr(conversion, alias.name), "__module__", "") == "analognoise.on_tiles"
    ]
    assert not wrong
