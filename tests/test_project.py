"""The package as a whole: what importing costs, where imports point, what is documented, and that its examples run."""

import ast
import doctest
import graphlib
import importlib
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import spatial_ensemble

ROOT = Path(__file__).parents[1]
PACKAGE = Path(spatial_ensemble.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "spatial_ensemble."))

# part of the package -> the parts that it may import, as docs/architecture.md draws them
MAY_IMPORT = {
    "smoothing": {"seeding"},
    "data": {"errors", "seeding", "smoothing"},
    "networks": {"errors", "seeding", "smoothing"},
    "evaluation": {"errors", "seeding", "smoothing", "data", "networks"},
    "integrations": {"errors", "seeding", "smoothing"},
    "plots": {"smoothing"},
    "methods": {"errors", "seeding", "smoothing", "data", "networks"},
    "training": {"errors", "seeding", "smoothing", "data", "networks", "evaluation", "methods"},
    "studies": {"errors", "seeding", "smoothing", "data", "networks", "evaluation", "methods", "training"},
    "cli": {"errors", "seeding", "smoothing", "data", "networks", "evaluation", "methods", "training", "studies"},
    "errors": set(),
    "seeding": set(),
}


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: a.b for `import a.b`; a.b and a.b.c for `from a.b import c`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where they point"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_importing_the_package_imports_torch_and_nothing_heavier():
    code = (
        "import sys, torch; before = set(sys.modules); from spatial_ensemble import *;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names <= {"spatial_ensemble", "torch"}


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_every_import_points_down(name):
    files = [file for file in PACKAGE.rglob("*.py") if part(file) == name]
    assert files
    for file in files:
        for target in imported(file):
            if target.startswith("spatial_ensemble."):
                to = target.split(".")[1]
                assert to == name or to in MAY_IMPORT[name] or to not in MAY_IMPORT, f"{file} imports {target}"


def test_every_part_has_its_place_in_the_order():
    parts = {part(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts == set(MAY_IMPORT)
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(re.search(rf"\b{name}(/|\.py)", guide) for name in parts), "the tree in CONTRIBUTING.md"


def test_no_imports_go_in_a_circle():
    """Within a package too, and neither in functions nor under TYPE_CHECKING."""
    files = {
        ".".join(("spatial_ensemble", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        targets = {target for target in imported(file) if target in files}
        # `from package import module` imports the module; it takes nothing from the package's facade.
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and all(f"{node.module}.{a.name}" in files for a in node.names):
                targets.discard(str(node.module))
        graph[name] = targets
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_file_is_longer_than_350_lines():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_the_mechanism_stands_on_torch_and_the_standard_library():
    compilers = {"numba", "llvmlite", "triton", "numpy"}  # on demand, behind plain torch as the fallback
    for file in (PACKAGE / "smoothing").rglob("*.py"):
        outside = {name.partition(".")[0] for name in imported(file)} - sys.stdlib_module_names
        allowed = {"torch", "spatial_ensemble"} | (compilers if file.parent.name == "kernels" else set())
        assert outside <= allowed, f"{file} imports {outside - allowed}"


def test_a_method_knows_of_the_data_the_batch_alone():
    for file in (PACKAGE / "methods").rglob("*.py"):
        for target in imported(file):
            assert not target.startswith("spatial_ensemble.data") or target.startswith(
                ("spatial_ensemble.data.batch", "spatial_ensemble.data.Batch")
            ), f"{file} imports {target}"


@pytest.mark.parametrize("name", spatial_ensemble.__all__)
def test_a_public_name_is_explained_in_its_docstring_and_on_the_site(name):
    value = getattr(spatial_ensemble, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert f"::: spatial_ensemble.{name}\n" in pages


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_examples_in_docstrings_run(name):
    if name.endswith("integrations.transformers") and not find_spec("transformers"):
        pytest.skip("transformers is not installed")
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_direct_dependency_and_name_no_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    wanted = {re.match(r"[\w-]+", need).group() for need in needs}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert wanted - {"spatial-ensemble"} <= pins.keys()
    assert not any("/" in line for line in lines)


def test_the_contributing_guide_stays_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_and_name_in_the_guides_exists(page):
    code = set(re.findall(r"`([\w./]+)`", re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)))
    files = {name for name in code if name.endswith((".py", "/"))}
    folders = PACKAGE, ROOT, ROOT / "tests" / "smoothing"
    assert not [
        name for name in files if "NAME" not in name and not any((folder / name).exists() for folder in folders)
    ]
    source = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    for name in code - files:
        last = name.rpartition(".")[2]
        if not name.startswith("torch.") and last not in ("csv", "json", "html", "ci/run", "md"):
            assert re.search(rf"(def|class) {last}\b|^ *{last}( =|:)", source, re.MULTILINE), name


@pytest.mark.parametrize("script", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("[be]*s/*.py")))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_a_script_takes_from_the_package_is_there(script):
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spatial_ensemble":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
