"""What the README and the pages beside it say is so: paths, targets, variables, walks, example."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.test_structure import LAYERS

README = ROOT / "README.md"
FAULTS = ROOT / "docs" / "faults.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "cluster" / "README.md", ROOT / "benchmarks" / "README.md"]
FOLDERS = "ali|sweeps|cluster|benchmarks|tests|docs"
ENDINGS = "py|md|yaml|sh|sbatch|png"


def section(page: Path, heading: str) -> str:
    """The text below a heading, to the next one of its level."""
    level = heading.split()[0]
    _, found, rest = page.read_text().partition(f"\n{heading}\n")
    assert found, f"{page.name} has no {heading!r}"
    return re.split(rf"\n{level} ", rest)[0]


@cache
def names() -> set[str]:
    """Names of the project's own files."""
    below = [path for folder in FOLDERS.split("|") for path in (ROOT / folder).rglob("*.*")]
    return {path.name for path in (*below, *ROOT.glob("*.*"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    text = page.read_text()
    paths = set(re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w", text))
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {x for x in links if "://" not in x and not (page.parent / x).exists()} == set()
    alone = set(re.findall(rf"(?<![\w/.<>-])[a-z][\w-]*\.(?:{ENDINGS})\b", text))
    made_by_commands = {"samples.png", "figure3.png"}
    assert alone - names() - made_by_commands == set()


def test_tests_that_are_named_exist():
    """In docs/faults.md; a name without a file is in the file named before it."""
    found = 0
    for named in re.findall(r"`([\w/]*(?:\.py)?(?:::\w+)?)`", FAULTS.read_text()):
        file, _, name = named.partition("::")
        if file.endswith(".py"):
            tests = ROOT / file
        elif not name:
            continue
        assert not name or f"def {name}(" in tests.read_text(), named
        found += 1
    assert found > 50


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        told = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)
        assert set(told) <= targets, page


def test_options_that_are_named_exist():
    sources = [*(ROOT / "ali").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    commands = re.findall(r"^\S+python (?:sweeps/|-m ali).*", README.read_text(), re.M)
    assert len(commands) > 5
    for option in re.findall(r"--([a-z][a-z-]+)", "\n".join(commands)):
        field = option.removeprefix("no-").replace("-", "_")
        assert re.search(rf"^    {field}: ", code, re.M), f"--{option}"


def test_variables_are_those_that_are_read():
    module = (ROOT / "ali" / "environment.py").read_text()
    read = re.findall(r"os\.environ(?:\.get\(|\[)\"(\w+)\"", module)
    told = re.findall(r"^\| `(\w+)` \|", section(README, "## Environment variables"), re.M)
    assert sorted(told) == sorted(read)


def test_tree_has_every_folder_and_engine_file():
    tree = section(ROOT / "docs" / "structure.md", "## Where things are")
    engine = ROOT / "sweeps" / "engine"
    expected = {path.name for path in engine.glob("*.py")} - {"__init__.py"}
    for folder in (engine, ROOT / "ali"):
        expected |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    expected |= {f"{folder}/" for folder in FOLDERS.split("|")}
    assert {name for name in expected if not re.search(rf"(?<![\w]){name}", tree)} == set()


def test_layers_are_those_that_are_held():
    """The engine's rows of the diagram are the layers that tests/test_structure.py holds."""
    diagram = section(ROOT / "docs" / "structure.md", "## Layers").split("```")[1]
    rows = diagram.partition("sweeps/engine/ ")[2].partition("- - -")[0].strip().splitlines()
    shown = [set(re.split(r"  +", row.strip())[0].split(", ")) for row in rows]
    held = [{name.rpartition(".")[2] for name in layer} - {"engine"} for layer in LAYERS["sweeps"]]
    assert shown == held[-len(shown) :]


# The walks of docs/structure.md -------------------------------------------------------------


def walks() -> dict[str, list[tuple[str, list[str]]]]:
    """By title: the files in order, each with the functions that are named there."""
    text = section(ROOT / "docs" / "structure.md", "## Four walks through the code")
    found = {}
    for part in text.split("\n### ")[1:]:
        title, _, steps = part.partition("\n")
        lines = re.findall(r"^\d+\. `([\w./]+)`: (.*)$", steps, re.M)
        found[title] = [(path, re.findall(r"`([\w.]+)\(\)`", rest)) for path, rest in lines]
        assert len(lines) == len(re.findall(r"^\d+\.", steps, re.M)) > 0, title
    return found


def functions(path: Path) -> set[str]:
    """Functions of a file, and the methods of its classes as Class.name."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_there_are_four_walks():
    assert len(walks()) == 4


@pytest.mark.parametrize("title", list(walks()))
def test_a_walk_passes_no_file_twice_and_names_what_is_there(title):
    files = [path for path, _ in walks()[title]]
    assert len(set(files)) == len(files)
    for path, named in walks()[title]:
        assert set(named) <= functions(ROOT / path), path
    assert sum(bool(named) for _, named in walks()[title]) >= len(files) - 1


# The example --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.integration
def test_the_library_example_runs(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    (tmp_path / "own.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if re.match(r"0000\d (completed|stopped)", line)]) == 3
    assert (tmp_path / "runs" / "own" / "optuna.journal").exists()
