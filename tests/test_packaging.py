"""What the package promises about itself: reasons for dependencies, layers, light imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import vidcache_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vidcache_jax"

# Each row may import the rows above it; the parts of one row do not know each other. A new part
# gets its place here, on purpose. "" is the package's own __init__.
LAYERS = (
    {"array_typing"},
    {"config", "sharding"},
    {"ops"},
    {"cache"},
    {"models"},
    {"tiny", "text", "checkpoint"},
    {"pipeline"},
    {"loading", "metrics"},
    {"sampling"},
    {"profiling"},
    {"testing", "planning"},
    {"benchmark"},
    {""},
    {"lab"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
# Nothing imports "testing" (it needs the test extra), and these parts know no model by name.
MODELS_BY_NAME = {"tiny", "pipeline", "loading", "metrics"}
HIDDEN = {
    part: MODELS_BY_NAME for part in ("sampling", "profiling", "testing", "planning", "benchmark")
}
MAY_IMPORT = {
    part: set().union(*LAYERS[:row]) - HIDDEN.get(part, set()) - {"testing"}
    for row, parts in enumerate(LAYERS)
    for part in parts
}
COMMAND_LINE = {"commands", "cli", "__main__"}
# Modules with other names than their packages.
MODULES = {"pillow": "PIL", "orbax-checkpoint": "orbax", "jax-triton": "jax_triton"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(source: Path) -> Iterator[str]:
    """Dotted names a file imports anywhere in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(source: Path) -> str:
    """The top-level part a file belongs to, "" for the package's own __init__."""
    part = source.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if part == "__init__" else part


PARTS = {part_of(source) for source in sources("vidcache_jax")}


def test_there_are_parts():
    assert {"cache", "models", "sampling"} <= PARTS


@pytest.mark.parametrize(
    "source", sources("vidcache_jax"), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_parts_import_only_what_lies_below(source):
    part = part_of(source)
    assert part in MAY_IMPORT, f"give {part!r} a place among the layers"
    for name in imported_modules(source):
        package, _, rest = name.partition(".")
        assert package not in ("checkpoints_convert", "scripts", "tests"), name
        if package == "vidcache_jax":
            target = rest.partition(".")[0]
            # A name that is no part, such as __version__, comes from the package's __init__.
            target = target if target in PARTS else ""
            assert target == part or target in MAY_IMPORT[part], f"{source.name} imports {name}"
        assert package not in ("tyro", "rich") or part in COMMAND_LINE, name


@pytest.mark.parametrize("source", sources("vidcache_jax/models"), ids=lambda path: path.name)
def test_models_import_no_concrete_policy(source):
    policies = vidcache_jax.POLICIES.values()
    concrete = {policy.__module__ for policy in policies}
    concrete |= {f"vidcache_jax.cache.{policy.__name__}" for policy in policies}
    for name in imported_modules(source):
        assert name not in concrete and name.rpartition(".")[0] not in concrete, name


def test_import_is_light():
    heavy = "torch", "tyro", "hypothesis", "pytest", "beartype", "checkpoints_convert", "orbax"
    program = f"import sys, vidcache_jax; print(*(m for m in {heavy} if m in sys.modules))"
    run = [sys.executable, "-c", program]
    output = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.split() == []


@pytest.fixture(scope="module")
def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


def requirements(pyproject: str, extras: Iterable[str] | None = None) -> list[str]:
    """The core dependencies and those of some extras, of all by default."""
    project = tomllib.loads(pyproject)["project"]
    optional = project["optional-dependencies"]
    chosen = optional if extras is None else extras
    return [*project["dependencies"], *(each for extra in chosen for each in optional[extra])]


def test_every_dependency_has_a_reason_and_so_has_every_ceiling(pyproject):
    assert len(requirements(pyproject)) > 10
    for requirement in requirements(pyproject):
        line = rf'^ *"{re.escape(requirement)}",  # \w.{{4,}}$'
        assert re.search(line, pyproject, re.MULTILINE), f"why {requirement}?"
        if re.search(rf'"{re.escape(requirement)}",  # .*pinned: ', pyproject):
            continue
        assert not re.search(r"<|==|~=|!=", requirement), f"{requirement} has an upper bound"
        assert ">=" in requirement, f"{requirement} has no lower bound"


@pytest.mark.parametrize("package", ["vidcache_jax", "checkpoints_convert"])
def test_every_import_is_a_dependency(pyproject, package):
    """What is imported is installed, if not always then by the extra that part is for."""
    needs = {"testing": ["test"], "checkpoints_convert": ["convert"], "triton.py": ["triton"]}
    for source in sources(package):
        extras = [extra for part in source.parts for extra in needs.get(part, [])]
        there = {re.split(r"[\[>=]", each)[0] for each in requirements(pyproject, extras)}
        there |= {module for name, module in MODULES.items() if name in there}
        for name in imported_modules(source):
            module = name.partition(".")[0]
            if module not in {*sys.stdlib_module_names, "vidcache_jax", "checkpoints_convert"}:
                assert module in there, f"{source.name} imports {module}"


def test_version_is_said_once(pyproject):
    assert tomllib.loads(pyproject)["project"]["version"] == vidcache_jax.__version__


def test_readme_has_one_test_command():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^<!-- test-command -->\n+```\w*\n(.+?)^```", readme, re.M | re.S)
    assert len(blocks) == 1 and "pytest" in blocks[0]
