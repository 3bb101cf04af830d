"""The house: imports run one way and in no circle, no file has over 400 lines, one reads variables.

An import counts wherever it stands: at the top of a module, in a function, and, but for circles,
under TYPE_CHECKING.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT

MAX_LINES = 400
FOLDERS = ("ali", "sweeps", "benchmarks", "cluster", "tests")

# From top to bottom. A module imports from its own group and from the layers below, never from
# another group of its layer. A group is a module or a package; the longest name that fits counts.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ali": (
        ("ali.__main__",),
        ("ali.cli.*",),  # the commands
        ("ali.figures", "ali.experiment", "ali.trained"),
        ("ali.evaluation", "ali.training"),
        ("ali.models",),
        ("ali.distributed",),
        ("ali.data",),
        (
            "ali.config",
            "ali.cli",
            "ali.lock",
            "ali.history",
        ),  # ali.cli itself: what all command lines share
        (
            *("ali.metrics", "ali.files", "ali.environment", "ali.output", "ali.catalog"),
            *("ali.arguments", "ali.settings", "ali.beside"),
        ),
        ("ali.errors", "ali"),
    ),
    "sweeps": (
        (
            *("sweeps.svhn", "sweeps.cifar10", "sweeps.celeba", "sweeps.tiny_imagenet"),
            *("sweeps.mixture", "sweeps.folder", "sweeps.best", "sweeps.report", "sweeps.status"),
            "sweeps.ui",
            "sweeps.dashboard",
        ),
        ("sweeps",),  # the public API
        ("sweeps.engine.launch",),
        ("sweeps.engine.driver", "sweeps.engine.final"),
        (
            *("sweeps.engine.full_training", "sweeps.engine.status", "sweeps.engine.watchdog"),
            *("sweeps.engine.overview", "sweeps.engine.ui"),
            *("sweeps.engine.front_page", "sweeps.engine.dashboard"),
        ),
        (
            *("sweeps.engine.progress", "sweeps.engine.search", "sweeps.engine.trial"),
            *("sweeps.engine.reporting", "sweeps.engine.reconcile", "sweeps.engine.shutdown"),
            *("sweeps.engine.workers", "sweeps.engine.final_test", "sweeps.engine.warm_start"),
            *("sweeps.engine.traces", "sweeps.engine.loaded", "sweeps.engine.registered_model"),
            *("sweeps.engine.training_files", "sweeps.engine.unused"),
        ),
        ("sweeps.engine.retention", "sweeps.engine.gpus"),
        (
            *("sweeps.engine.scheduler", "sweeps.engine.results"),
            *("sweeps.engine.cluster", "sweeps.engine.mirror"),
        ),
        ("sweeps.engine.saved_options", "sweeps.engine.forest"),
        ("sweeps.engine.study", "sweeps.engine.options"),
        ("sweeps.engine.journal", "sweeps.engine.points", "sweeps.engine.importance"),
        (
            *("sweeps.engine.tracking", "sweeps.engine.storage", "sweeps.engine.space"),
            *("sweeps.engine.experiment", "sweeps.engine.forecast", "sweeps.engine.formatting"),
            *("sweeps.engine.confirmation", "sweeps.engine.pareto"),
            *("sweeps.engine.scripts", "sweeps.engine.ray_compat"),
            *("sweeps.engine.live", "sweeps.engine.option_groups"),
        ),
        (
            *("sweeps.engine.endings", "sweeps.engine.retry", "sweeps.engine.estimate"),
            *("sweeps.engine.dimensions", "sweeps.engine.objective", "sweeps.engine.pyfunc_model"),
            "sweeps.engine",
        ),
    ),
}
MAY_READ_ENVIRONMENT = {"ali/environment.py"}


def sources(*folders: str) -> list[Path]:
    """Python files, but for what is built or installed in a folder of its own."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not {"build", "__pycache__", ".venv"} & set(path.parts)]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sources(*FOLDERS)}


@cache
def imports_of(module: str, types: bool = True) -> frozenset[str]:
    """The modules of this project that a module imports; `from package import name` is a module's
    name where there is one, else the package's. `types`: those under TYPE_CHECKING, too."""
    path, known = modules()[module], modules()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree, found = ast.parse(path.read_text()), set()
    if not types:
        tree.body = [node for node in tree.body if not _for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in inside}
    return frozenset(found & known.keys()) - {module}


def _for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def place(module: str, layers: tuple[tuple[str, ...], ...]) -> tuple[int, str]:
    """Layer and group of a module."""
    groups = {group: i for i, layer in enumerate(layers) for group in layer}
    if module in groups:
        return groups[module], module
    names = module.split(".")
    for length in range(len(names) - 1, 0, -1):
        package = ".".join(names[:length])
        for group in (f"{package}.*", package):
            if group in groups and package != module.split(".")[0]:
                return groups[group], group
    raise AssertionError(
        f"{module} has no place in LAYERS: add its group to tests/test_structure.py"
    )


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """Groups of modules each of which imports, through others, every one of its group (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}}
    assert circles({name: frozenset(others) for name, others in graph.items()}) == [["a", "b", "c"]]


def test_imports_are_read_wherever_they_stand():
    assert "ali.data" in imports_of("ali.cli.train")  # within a function
    networks, checkpoints = "ali.models.base", "ali.cli.checkpoints"  # for types alone
    assert networks in imports_of(checkpoints) - imports_of(checkpoints, types=False)
    assert "ali.evaluation.svm" in imports_of("ali.evaluation.protocol")  # from package import


def test_no_module_imports_itself_through_others():
    assert circles({module: imports_of(module, types=False) for module in modules()}) == []


@pytest.mark.parametrize("package", [name for name, layers in LAYERS.items() if layers])
def test_imports_run_one_way(package):
    layers, wrong = LAYERS[package], []
    for module in modules():
        if module.split(".")[0] != package:
            continue
        layer, group = place(module, layers)
        for other in imports_of(module):
            if other.split(".")[0] != package:
                continue
            below, another = place(other, layers)
            if another != group and below <= layer:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


@pytest.mark.parametrize(("package", "allowed"), [("ali", {"ali"}), ("sweeps", {"ali", "sweeps"})])
def test_packages_know_only_what_is_below_them(package, allowed):
    """The library knows no sweep, and neither knows its tests and benchmarks."""
    for module in modules():
        if module.split(".")[0] == package:
            assert {other.split(".")[0] for other in imports_of(module)} <= allowed, module


def test_no_file_is_longer_than_400_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in modules().values()}
    assert {str(path): n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_one_file_reads_the_environment():
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    readers = set()
    for path in sources("ali", "sweeps"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {node.name for node in nodes if isinstance(node, ast.alias)}
        if used & names:
            readers.add(str(path.relative_to(ROOT)))
    assert readers == MAY_READ_ENVIRONMENT


PURE = {"isinstance", "len", "dict", "monotonic", "startswith", "splitlines", "poll", "contents"}


def test_nothing_depends_on_an_assert_being_run():
    """`python -O` leaves them out. In tests pytest keeps them."""
    found = []
    for path in sources(*FOLDERS):
        if path.name.startswith("test_") or path.name == "conftest.py":
            continue
        for stated in ast.walk(ast.parse(path.read_text())):
            for node in ast.walk(stated.test) if isinstance(stated, ast.Assert) else ():
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                effect = called and called.rpartition(".")[2] not in PURE
                if effect or isinstance(
                    node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom
                ):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_text_files_have_the_same_encoding_in_every_locale():
    """In one that is not UTF-8 no report could be written."""
    found = []
    for path in sources("ali", "sweeps", "cluster", "benchmarks"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            named = {k.arg for k in node.keywords} if called else set()
            if called in ("read_text", "write_text") and "encoding" not in named:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("module", ["ali", "ali.experiment", "ali.__main__"])
def test_the_library_leaves_the_sweeps_libraries_alone(module):
    code = (
        f"import sys, {module}; print({{'ray', 'optuna', 'mlflow', 'sweeps'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_all_that_is_printed_by_rich_is_text_and_no_markup():
    makers = set()
    for path in sources("ali", "sweeps"):
        called = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {ast.unparse(function).rpartition(".")[2] for function in called}
        if names & {"Console", "from_markup", "render"}:
            makers.add(str(path.relative_to(ROOT)))
    assert makers == {"ali/output.py"}


# Attributes of Ray's trials, trainables and controllers that its documentation does not name.
RAYS_OWN = {"temporary_state", "run_metadata", "init_local_path", "set_status", "error_file"}
RAYS_OWN |= {"_last_result", "_storage", "_mark_trial_to_checkpoint", "current_checkpoint_index"}
# Modules of Ray that are public: in its documentation, or what documented base classes are in.
RAYS_PUBLIC = {"ray", "ray.tune", "ray.train", "ray.train.torch", "ray.exceptions"}
RAYS_PUBLIC |= {"ray.util.scheduling_strategies"}
RAYS_PUBLIC |= {f"ray.tune.{name}" for name in ("experiment", "schedulers", "search", "result")}


def test_one_file_touches_private_names_of_ray():
    touching = set()
    for path in sources("ali", "sweeps"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            own = isinstance(node, ast.Attribute) and node.attr in RAYS_OWN
            inside = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            private = module.split(".")[0] == "ray" and module not in RAYS_PUBLIC
            text = isinstance(node, ast.Constant) and str(node.value).startswith(("RAY_", "TUNE_"))
            if (own and not inside) or private or (text and path.name != "environment.py"):
                touching.add(str(path.relative_to(ROOT)))
    assert touching == {"sweeps/engine/ray_compat.py"}


def test_one_file_touches_private_names_of_optuna():
    touching = {
        str(path.relative_to(ROOT))
        for path in sources("ali", "sweeps")
        if re.search(r"(?<!self)\._(trial|study)_id|optuna\._", path.read_text())
    }
    assert touching == {"sweeps/engine/study.py"}


def test_no_private_names_of_torch():
    for path in sources("ali", "sweeps"):
        assert "torch.cpu._" not in path.read_text() and "torch._" not in path.read_text(), path
