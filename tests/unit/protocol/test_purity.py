"""The protocol core has no clock, no dice, no input or output: time and chance are arguments."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from wavry_peer import protocol

CORE = "wavry_peer.protocol"
FOLDER = Path(protocol.__file__).parent
SOURCES = sorted(FOLDER.rglob("*.py"))
FORBIDDEN_MODULES = {
    *("asyncio", "socket", "ssl", "select", "selectors", "subprocess", "threading", "signal"),
    *("os", "io", "pathlib", "shutil", "tempfile", "mmap", "sqlite3", "logging", "sys"),
    *("time", "random", "secrets", "uuid", "locale", "zoneinfo"),
    *("aiohttp", "structlog", "typer", "rich", "wavry_relay", "wavry_cp"),
}
FORBIDDEN_CALLS = {
    *("now", "utcnow", "today", "urandom", "token_bytes", "uuid1", "uuid4", "getrandbits"),
    *("perf_counter", "monotonic", "monotonic_ns", "time_ns", "sleep", "randombytes", "generate"),
    *("keypair", "crypto_box_keypair", "crypto_sign_keypair", "import_module"),
}
FORBIDDEN_BUILTINS = {"open", "print", "input", "exec", "eval", "__import__"}


def imported_modules(tree: ast.AST, package: str) -> set[str]:
    """Full names of what a module of the package imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            found.add(".".join([*(base if node.level else []), node.module or ""]))
    return found


def called_names(tree: ast.AST) -> set[str]:
    """Names of forbidden calls; a method may be called `open`, the builtin may not be called."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {node.func.id} & (FORBIDDEN_BUILTINS | FORBIDDEN_CALLS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found |= {node.func.attr} & FORBIDDEN_CALLS
    return found


def faults(source: str, package: str = CORE) -> set[str]:
    tree = ast.parse(source)
    modules = imported_modules(tree, package)
    found = {name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES}
    ours = {name for name in modules if name.split(".")[0] == "wavry_peer"}
    found |= {name for name in ours if not f"{name}.".startswith(f"{CORE}.")}
    found |= called_names(tree)
    if "async def" in source or "await " in source:
        found.add("async")
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join([CORE, *(part for part in parts if part != "__init__")])


def test_every_folder_of_the_core_is_looked_at() -> None:
    assert {path.parent.name for path in SOURCES} >= {"protocol", "channel", "http"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_clock_no_dice_no_io(path: Path) -> None:
    package = module_name(path.parent / "__init__.py")
    assert faults(path.read_text(), package) == set()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import time", "time"),
        ("def f():\n    from os import urandom", "os"),
        ("import asyncio.events", "asyncio.events"),
        ("datetime.now(UTC)", "now"),
        ("utils.random(8)\nnacl.utils.randombytes(8)", "randombytes"),
        ("from ..service.settings import load", "wavry_peer.service.settings"),
        ("from wavry_peer.home import identity", "wavry_peer.home"),
        ("async def f() -> None: ...", "async"),
        ("open('file')", "open"),
    ],
)
def test_the_check_itself_can_fail(source: str, fault: str) -> None:
    assert fault in faults(source)


def test_subfolder_may_use_the_core_and_nothing_above_it() -> None:
    channel = f"{CORE}.channel"
    assert faults("from .. import constants\nfrom ..packets import decode", channel) == set()
    assert faults("from ...service import clock", channel) == {"wavry_peer.service"}


def test_importing_the_core_imports_nothing_else_of_ours() -> None:
    names = [module_name(path) for path in SOURCES]
    program = "\n".join(
        [
            "import importlib, sys",
            *(f"importlib.import_module({name!r})" for name in names),
            "print(*sorted(name for name in sys.modules if name.startswith('wavry_')))",
            "foreign = {'asyncio', 'aiohttp', 'structlog', 'typer', 'rich'}",
            "print(*sorted(foreign & set(sys.modules)))",
        ]
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    ours, foreign = result.stdout.splitlines()
    assert set(ours.split()) == {"wavry_peer", *names}
    assert foreign == ""
