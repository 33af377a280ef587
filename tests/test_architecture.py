"""The house plan, held by reading the source: who may import whom, and what nobody may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sas"

# A module imports only from strictly lower ranks; inside `data` and `models`, from its own package too, without cycles.
RANKS = {
    0: ("masks", "geometry", "io", "seeding", "config", "provenance", "optimizer", "imports", "console"),
    1: (
        "arguments",
        "order",
        "pictures",
        "visualize",
        "distributed",
        "refine",
        "manifest",
        "catalog",
        "result_files",
        "schedulers",
        "storage",
    ),
    2: ("scene", "overview", "ensemble", "checkpoint", "run_lock", "optimizer_state", "pretrained", "tracking"),
    3: ("result", "items", "metrics", "models"),
    4: ("data", "diffusion", "layerloop"),
    5: ("pipeline",),
    6: ("factory", "validation", "sampling", "demo", "doctor", "averaging", "data_check", "export", "growing"),
    7: ("training", "evaluation"),
    8: ("cli_data", "cli_options"),
    9: ("cli",),
    10: ("__main__",),
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
ALONE = {"accelerate": {"training", "distributed"}, "wandb": {"tracking"}}


def module_name(path: Path) -> str:
    """Name inside the package: "data.atlas", "data" for its __init__, "" for that of `sas`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Full names of the modules that a module imports anywhere, functions and type checking included, and where."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"sas/{name}: relative import in line {node.lineno}; write the full name"
            module = node.module or ""
            for alias in node.names:
                # `from sas import masks` and `from sas.data import atlas` name modules, not things inside one.
                whole = f"{module}.{alias.name}"
                yield (whole if whole.removeprefix("sas.") in SOURCES else module), node.lineno


def own_imports(name: str) -> Iterator[tuple[str, int]]:
    """Modules of this package, by their name inside it."""
    for module, line in imports(name):
        if module == "sas" or module.startswith("sas."):
            yield module.removeprefix("sas").removeprefix("."), line


def top(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_its_rank_and_every_rank_its_module() -> None:
    assert {top(name) for name in SOURCES} - {""} == set(RANK)
    assert sum(map(len, RANKS.values())) == len(RANK)


@pytest.mark.parametrize("name", [name for name in SOURCES if name])
def test_modules_import_from_lower_ranks(name: str) -> None:
    for module, line in own_imports(name):
        inside = top(module) == top(name) and top(name) in ("data", "models")
        assert module == "" or inside or RANK[top(module)] < RANK[top(name)], (
            f"sas/{name} (rank {RANK[top(name)]}), line {line}: imports sas.{module} (rank {RANK[top(module)]})"
        )


def test_there_is_no_cycle() -> None:
    graph = {name: {module for module, _ in own_imports(name) if module} for name in SOURCES if name}
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_package_itself_imports_its_modules_only_when_asked() -> None:
    """So that `sas --help` need not wait for torch; type checkers see everything."""
    for node in TREES[""].body:
        if isinstance(node, ast.ImportFrom):
            assert node.module in ("__future__", "typing")
        if isinstance(node, ast.Import):
            assert [alias.name for alias in node.names] == ["importlib"]


def test_names_are_imported_from_their_own_modules() -> None:
    for name in SOURCES:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.ImportFrom) and node.module == "sas":
                names = {alias.name for alias in node.names}
                assert names <= {"__version__", *SOURCES}, f"sas/{name}, line {node.lineno}: import it from its module"


@pytest.mark.parametrize("library", ALONE)
def test_heavy_libraries_stay_in_their_modules(library: str) -> None:
    users = {name for name in SOURCES for module, _ in imports(name) if top(module) == library}
    assert users and users <= ALONE[library]


def test_a_configuration_object_is_seen_only_from_the_factory_up() -> None:
    for name in SOURCES:
        if name and RANK[top(name)] < RANK["factory"]:
            assert "config" not in {module for module, _ in own_imports(name)}, f"sas/{name} imports sas.config"


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """What a module calls, as written ("torch.load"), wherever the name can be read off."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("__main__", "cli", "cli_data")])
def test_nobody_but_the_command_line_prints(name: str) -> None:
    assert [node.lineno for called, node in calls(name) if called == "print"] == []


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_pickled(name: str) -> None:
    modules = {top(module) for module, _ in imports(name)}
    assert not modules & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for called, node in calls(name):
        # The one file of somebody else's that training may start from is a pickle; its package is read with tensors alone allowed.
        tensors_only = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
        if not (name == "models.encoders" and called == "torch.load" and tensors_only):
            assert called not in ("torch.load", "torch.save"), f"sas/{name}, line {node.lineno}: {called} pickles"
        if called in ("np.load", "numpy.load"):
            allowed = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("allow_pickle")
            assert allowed == "False", f"sas/{name}, line {node.lineno}: np.load without allow_pickle=False"


@pytest.mark.parametrize("name", SOURCES)
def test_nobody_calls_hash(name: str) -> None:
    """The built-in gives another number for a text in each process."""
    assert [node.lineno for called, node in calls(name) if called in ("hash", "builtins.hash")] == []


@pytest.mark.parametrize("name", SOURCES)
def test_randomness_has_a_generator(name: str) -> None:
    """No library function draws from or seeds a global state."""
    state = (
        "np.random.seed",
        "np.random.rand",
        "np.random.randn",
        "np.random.randint",
        "np.random.choice",
        "random.seed",
    )
    drawn = [node.lineno for called, node in calls(name) if called in (*state, "random.random", "random.choice")]
    drawn += [
        node.lineno
        for called, node in calls(name)
        if called in ("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.bernoulli")
        and "generator" not in {word.arg for word in node.keywords}
    ]
    assert drawn == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name])
def test_modules_say_what_they_are(name: str) -> None:
    words = ast.get_docstring(TREES[name])
    assert words and len(words.splitlines()[0]) > 20
