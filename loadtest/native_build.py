"""Compiles the native programs of the bench, on demand, into the build directory."""

import os
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["BUILD_DIR", "CompileError", "compile_program"]

SOURCE_DIR: Final = Path(__file__).parent / "native"
BUILD_DIR: Final = Path(__file__).parent.parent / "build" / "loadtest"
_FLAGS: Final = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")


class CompileError(RuntimeError):
    """The C compiler is missing or refused a program; the message carries what it said."""


def compile_program(name: str, build_dir: Path = BUILD_DIR, *, library: bool = False) -> Path:
    """Compile ``native/<name>.c``; a program newer than its sources is used as it is.

    Args:
        name: of the source.
        build_dir: where the program goes.
        library: make a shared library of it.

    Raises:
        CompileError: no such source, no gcc, or warnings or errors.
    """
    source = SOURCE_DIR / f"{name}.c"
    if not source.exists():
        raise CompileError(f"there is no {source.name}")
    program = build_dir / name
    sources = [source, *SOURCE_DIR.glob("*.h")]
    newest = max(path.stat().st_mtime for path in sources)
    if program.exists() and program.stat().st_mtime > newest:
        return program
    build_dir.mkdir(parents=True, exist_ok=True)
    fresh = build_dir / f"{name}.{os.getpid()}.new"  # another process may be compiling too
    flags = (*_FLAGS, "-shared", "-fPIC") if library else _FLAGS
    command = ["gcc", *flags, "-o", str(fresh), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - our own command
    except FileNotFoundError as error:
        raise CompileError("gcc is not installed; run `make system`") from error
    if done.returncode != 0:
        raise CompileError(f"{source.name} does not compile:\n{done.stderr}")
    fresh.replace(program)
    return program
