"""ARCHITECTURE.md, GLOSSARY.md and CONTRIBUTING.md name what exists, and every room is listed.

A code span is looked up by its form: a path, a class (`Class` or `Class.member`), a function
(`name()`), a constant (`UPPER_CASE`), a module (`wavry_relay.engine`).  Other spans are words.
In the row of a table that names source files, its symbols must be in one of them.
"""

import ast
import itertools
import re
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml
from support.paths import REPOSITORY

DOORS = ("ARCHITECTURE.md", "GLOSSARY.md", "CONTRIBUTING.md")
PACKAGES = ("wavry_peer", "wavry_relay", "wavry_cp", "loadtest")
SOURCES = (".py", ".pyx", ".c", ".h")
PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")
PATH_ENDS = (*SOURCES, ".md", ".toml", ".yaml", ".yml", "/")
SYMBOL = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")
MADE = ("build/", ".venv/", "corpus/")
"""Not in a fresh clone."""
FOREIGN = {"asyncio", "pytest", "Protocol", "StrEnum", "Makefile", "Noise"}


def spans(text: str) -> list[str]:
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def is_path(span: str) -> bool:
    """Whether a span is one; a source file without its folder (`rules.py`) is any of that name."""
    if not PATH.fullmatch(span) or span.startswith(MADE) or not span.endswith(PATH_ENDS):
        return False
    return "/" in span or not span.endswith(SOURCES)


@cache
def names_of(path: Path) -> frozenset[str]:
    """What a source file defines: classes, members, functions and constants."""
    text = path.read_text(errors="replace")
    if path.suffix != ".py":
        names = re.findall(
            r"\b(wv_\w+)\s*\(|^cdef class (\w+)|\b([A-Z][A-Z0-9_]{3,})\b", text, re.M
        )
        return frozenset(filter(None, itertools.chain(*names))) | members_of_pyx(text)
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{name}" for name in bound_names(node.body)}
    return frozenset(found | bound_names(ast.parse(text).body))


def members_of_pyx(text: str) -> frozenset[str]:
    found = set()
    for name, body in re.findall(r"^cdef class (\w+).*?:\n(.*?)(?=^\S|\Z)", text, re.M | re.S):
        found |= {f"{name}.{member}" for member in re.findall(r"^    def (\w+)", body, re.M)}
    return frozenset(found)


def bound_names(body: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def source_files() -> list[Path]:
    return [
        path
        for top in (*PACKAGES, "tests", "docker", "docs")
        for path in (REPOSITORY / top).rglob("*")
        if path.suffix in SOURCES
    ]


@cache
def everything() -> frozenset[str]:
    return frozenset[str]().union(*map(names_of, source_files()))


def wanted_name(span: str) -> str | None:
    """Name that must be defined for a span; None where the span is a word."""
    if not SYMBOL.fullmatch(span) or span.split(".")[0] in FOREIGN:
        return None
    name = span.removesuffix("()")
    first = name.split(".")[0]
    if span.endswith("()") or re.search(r"^_?[A-Z]\w*[a-z]", first):
        return name
    if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", name) and not name.startswith("WAVRY_"):
        return name
    return None


@pytest.mark.parametrize("door", DOORS)
def test_every_path_that_is_named_exists(door: str) -> None:
    named = {span for span in spans((REPOSITORY / door).read_text()) if is_path(span)}
    assert named
    missing = {path for path in named if not any(REPOSITORY.glob(path.rstrip("/")))}
    assert not missing


@pytest.mark.parametrize("door", DOORS)
def test_every_class_function_and_module_that_is_named_exists(door: str) -> None:
    missing = []
    for line in (REPOSITORY / door).read_text().splitlines():
        found = spans(line)
        files = [REPOSITORY / span for span in found if span.endswith(SOURCES) and is_path(span)]
        files = [path for path in files if path.exists()]
        in_row = files and line.startswith("|")
        there = [names_of(path) for path in files] if in_row else [everything()]
        for name in filter(None, map(wanted_name, found)):
            if not any(name in names for names in there):
                missing.append(f"{name}: {line}")
        for module in (span for span in found if span.startswith(tuple(f"{p}." for p in PACKAGES))):
            place = REPOSITORY / module.replace(".", "/")
            if not place.is_dir() and not place.with_suffix(".py").exists():
                missing.append(module)
    assert not missing, "\n".join(missing)


def test_architecture_lists_every_room() -> None:
    """Each folder of code has its line, and so have the folders at the top and in tests/."""
    listed = set(spans((REPOSITORY / "ARCHITECTURE.md").read_text()))
    rooms = {
        f"{path.parent.relative_to(REPOSITORY)}/"
        for top in PACKAGES
        for path in (REPOSITORY / top).rglob("*.py")
    }
    rooms |= {
        f"{path.relative_to(REPOSITORY)}/"
        for path in (REPOSITORY / "tests").iterdir()
        if any(path.rglob("*.py"))
    }
    rooms |= {f"{name}/" for name in ("docker", "docs", "systemd-examples", "tests", ".ci")}
    if (REPOSITORY / "examples").exists():
        rooms.add("examples/")
    assert not rooms - listed


def test_walks_and_recipes_are_all_there() -> None:
    architecture = (REPOSITORY / "ARCHITECTURE.md").read_text()
    for walk in ("A datagram", "A lease token", "A drain order", "A login", "A worker's death"):
        assert f"### {walk}" in architecture
    for subject in ("limits", "drain", "revocation", "selection", "keys", "shedding"):
        assert re.search(rf"^\| {subject}", architecture, re.M), subject
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text()
    recipes = (
        "counter",
        "metric",
        "setting",
        "route",
        "reject reason",
        "admin command",
        "migration",
    )
    for number, recipe in enumerate(recipes, 1):
        assert f"### {number}. Add a" in contributing
        assert re.search(rf"^### {number}\. Add an? .*{recipe}", contributing, re.M), recipe


def test_make_targets_and_scripts_that_contributors_type_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in set(re.findall(r"\btests/[\w/]+\.py\b", text)):
        assert (REPOSITORY / path).exists(), path


def test_hooks_before_a_commit_call_programs_of_the_virtual_environment() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local", "nothing is fetched"
    project = (REPOSITORY / "pyproject.toml").read_text()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        package = {"lint-imports": "import-linter"}.get(Path(program).name, Path(program).name)
        assert f'"{package}' in project


@pytest.mark.parametrize("service", ["wavry_cp.gateway", "wavry_cp.master"])
def test_every_module_of_a_service_has_its_layer(service: str) -> None:
    """A contract that names modules below its rooms cannot be `exhaustive`: import-linter says."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in contracts["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == [service]
    )
    placed = {f"{service}.{name.strip()}" for layer in layers for name in re.split("[|:]", layer)}
    folder = REPOSITORY / service.replace(".", "/")
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    missing = {
        module for module in modules if not any(f"{module}.".startswith(f"{at}.") for at in placed)
    }
    assert not missing


def test_no_folder_holds_more_than_sixteen_modules() -> None:
    tops = (REPOSITORY / name for name in (*PACKAGES, "tests", "docs", "docker", "examples"))
    modules = (
        path for top in tops for path in top.rglob("*.py*") if path.suffix in (".py", ".pyx")
    )
    folders = Counter(str(path.parent.relative_to(REPOSITORY)) for path in modules)
    assert len(folders) > 50
    assert {folder: count for folder, count in folders.items() if count > 16} == {}


def test_no_constructor_takes_more_than_seven_parameters() -> None:
    """Eleven parameters mean that a noun is missing."""
    seen, long = 0, []
    for path in (path for top in PACKAGES for path in (REPOSITORY / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for made in node.body:
                if isinstance(made, ast.FunctionDef) and made.name in ("__init__", "__new__"):
                    taken = made.args
                    names = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs][1:]
                    seen += 1
                    if len(names) > 7:
                        long.append(f"{path.relative_to(REPOSITORY)}: {node.name}")
    assert seen > 200
    assert long == []


def test_no_public_class_name_stands_twice() -> None:
    where: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where.setdefault(node.name, []).append(str(path.relative_to(REPOSITORY)))
    assert len(where) > 300
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
