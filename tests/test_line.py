"""The import line: engine/__init__.py says who may import whom, and this reads it from there."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import engine

ROOT = Path(engine.__file__).parents[1]


def line_in(text: str) -> list[str]:
    """The modules of the import line, whose rows have arrows, in their order."""
    return [name for row in text.splitlines() if "→" in row for name in re.findall(r"\w+", row)]


LINE = line_in(str(engine.__doc__))
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
APP = [ROOT / "app.py", *sorted((ROOT / "pages").rglob("*.py"))]
WITHOUT_TORCH = ["config", "presets", "datasets", "records", "costs", "index", "stages", "jobs", "api", "__main__"]


def is_module(dotted: str) -> bool:
    """Whether it is a file or a folder of the project: engine.report is, engine.config.Config is not."""
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def imports(source: str, *, at_once: bool = False) -> set[str]:
    """Dotted names of all that a module imports, wherever in it or at once; `from engine import x` is engine.x.

    `from engine.report import tables` is engine.report.tables, `from engine.config import Config` is engine.config.
    """
    found, tree = set(), ast.parse(source)
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            package = str(node.module)
            names = {f"{package}.{alias.name}" for alias in node.names}
            found |= {name if package in ("engine", "pages") or is_module(name) else package for name in names}
    return found


def name_in_line(path: Path) -> str:
    """engine/attacks/pacd.py belongs to attacks."""
    return path.relative_to(ROOT / "engine").with_suffix("").parts[0]


def engine_modules(source: str, *, at_once: bool = False) -> set[str]:
    """Which modules of the engine a module imports: config, report.tables."""
    found = imports(source, at_once=at_once)
    return {dotted.removeprefix("engine.") for dotted in found if dotted.startswith("engine.")}


def engine_imports(source: str) -> set[str]:
    """Which names of the line a module imports."""
    return {module.split(".")[0] for module in engine_modules(source)}


def pointing_right(name: str, source: str) -> list[str]:
    allowed = LINE[: LINE.index(name) + 1]
    return sorted(engine_imports(source) - set(allowed))


def users_of(library: str) -> list[str]:
    """Files that import a library, relative to the project."""
    return [
        str(path.relative_to(ROOT))
        for path in [*ENGINE, *APP]
        if any(dotted.split(".")[0] == library for dotted in imports(path.read_text()))
    ]


def test_every_module_stands_in_the_line_once_and_every_name_is_a_module():
    modules = {name_in_line(path) for path in ENGINE} - {"__init__"}
    assert sorted(LINE) == sorted(modules)


@pytest.mark.parametrize("path", [path for path in ENGINE if path.parent.name != "engine" or path.stem != "__init__"])
def test_no_import_points_right(path):
    assert pointing_right(name_in_line(path), path.read_text()) == []


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in ENGINE} - {ROOT / "engine"}), ids=lambda path: path.name
)
def test_modules_of_a_folder_do_not_import_each_other_in_a_circle(folder):
    names = {f"engine.{folder.name}.{path.stem}": path for path in folder.glob("*.py")}
    among = {name: imports(path.read_text()) & names.keys() for name, path in names.items()}
    assert len(list(TopologicalSorter(among).static_order())) == len(names)  # raises CycleError


@pytest.mark.parametrize(
    "source",
    [
        "import engine.attacks",
        "from engine import attacks",
        "from engine.attacks import pacd",
        "from engine.attacks.pacd import pacd",
        "def late():\n    from engine.attacks.pacd import pacd",
    ],
)
def test_an_import_that_points_right_is_found_in_every_form(source):
    assert pointing_right("metrics", source) == ["attacks"]
    assert pointing_right("experiment", source) == []


def test_the_package_itself_imports_nothing():
    assert imports((ROOT / "engine" / "__init__.py").read_text()) == set()


def test_the_engine_knows_neither_the_app_nor_its_pages():
    assert [path for path in users_of("pages") + users_of("app") if path.startswith("engine")] == []


def test_the_app_imports_modules_of_the_line_only():
    for path in APP:
        assert engine_imports(path.read_text()) <= set(LINE), path


def test_streamlit_is_for_the_app_and_its_pages_alone():
    assert [path for path in users_of("streamlit") if path != "app.py" and not path.startswith("pages/")] == []


def test_plotly_is_for_figures_alone():
    users = [path for path in users_of("plotly") if not path.startswith("engine/figures/")]
    assert set(users) <= {"engine/html_report.py"}


def test_nothing_under_the_engine_prints_but_the_command_line():
    printing = [
        str(path.relative_to(ROOT / "engine"))
        for path in ENGINE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert set(printing) <= {"__main__.py", "follow.py", "studies/commands.py"}


def test_what_opens_at_once_does_not_import_torch():
    """Configuration, records, jobs and the command line, and all that the pages import at once."""
    of_pages = set().union(*(engine_modules(path.read_text(), at_once=True) for path in APP))
    names = sorted({*WITHOUT_TORCH, *of_pages}, key=lambda module: LINE.index(module.split(".")[0]))
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(f'engine.{name}')\n"
        "    assert not {'torch', 'torchvision', 'streamlit'} & sys.modules.keys(), name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_the_same_line():
    house = (ROOT / "README.md").read_text().partition("Each engine module may import only modules before it")[2]
    assert line_in(house.partition("To add")[0]) == LINE
