"""The protocol core has no clock, no dice, no input or output: time and chance are arguments."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from wavry_peer import protocol

SOURCES = sorted(Path(protocol.__file__).parent.glob("*.py"))
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


def imported_modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            found.add("wavry_peer." + (node.module or ""))
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


def faults(source: str) -> set[str]:
    tree = ast.parse(source)
    modules = imported_modules(tree)
    found = {name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES}
    found |= {name for name in modules if name.startswith("wavry_peer.")}
    found |= called_names(tree)
    if "async def" in source or "await " in source:
        found.add("async")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_clock_no_dice_no_io(path: Path) -> None:
    assert faults(path.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import time", "time"),
        ("def f():\n    from os import urandom", "os"),
        ("import asyncio.events", "asyncio.events"),
        ("datetime.now(UTC)", "now"),
        ("utils.random(8)\nnacl.utils.randombytes(8)", "randombytes"),
        ("from ..settings import load", "wavry_peer.service.settings"),
        ("async def f() -> None: ...", "async"),
        ("open('file')", "open"),
    ],
)
def test_the_check_itself_can_fail(source: str, fault: str) -> None:
    assert fault in faults(source)


def test_importing_the_core_imports_nothing_else_of_ours() -> None:
    names = [f"wavry_peer.protocol.{path.stem}" for path in SOURCES if path.stem != "__init__"]
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
    assert set(ours.split()) == {"wavry_peer", "wavry_peer.protocol", *names}
    assert foreign == ""
