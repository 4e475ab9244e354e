"""Builds the relay's native engine; everything else stands in pyproject.toml.

``WAVRY_BUILD_NATIVE`` says how much it matters: ``try`` (the default) goes on without it where
Cython, a C compiler or Linux is missing, ``require`` fails then, and ``skip`` does not try.

``WAVRY_BUILD_SANITIZE=address,undefined`` builds an engine for tests that ends its process at the
first fault (see docs/security.md).  It needs a directory of its own (``setup.py build --build-base
DIRECTORY``): the tree's extension is the one that serves.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

ENGINE = Path("wavry_relay/engine")
CORE = ENGINE / "core"
STRICT = ["-std=c11", "-O2", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


class BuildNative(build_ext):
    """Compiles the packet path with warnings as errors, and the Cython shell without."""

    def finalize_options(self) -> None:
        """Keep a sanitized engine out of the tree."""
        super().finalize_options()
        if sanitize and self.inplace:
            sys.exit("WAVRY_BUILD_SANITIZE needs a directory of its own: build --build-base DIR")

    def build_extension(self, ext: Any) -> None:
        """Compile the C sources and hand the objects to the shell's link."""
        objects = self.compiler.compile(
            [str(path) for path in sources if path.suffix == ".c"],
            output_dir=self.build_temp,
            extra_postargs=STRICT + sanitizer_flags(),
            depends=ext.depends,
        )
        ext.extra_objects = objects
        super().build_extension(ext)

    def run(self) -> None:
        """Build, or say why not where that is allowed."""
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:
            if wanted == "require":
                raise
            print(f"the native engine was not built, the relay uses the pure one: {error}")


def sanitizer_flags() -> list[str]:
    """Compiler and linker flags of a sanitized build, none otherwise."""
    return [*SANITIZED, f"-fsanitize={sanitize}"] if sanitize else []


def extensions() -> list[Any]:
    """Return the shell with the digests of its sources; nothing where Cython may be missing."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        if wanted == "require":
            raise
        print("Cython is missing: the native engine is not built")
        return []
    digest_of = listing["digest_of"]
    shell = Extension(
        "wavry_relay.engine._native",
        [str(ENGINE / "_native.pyx")],
        include_dirs=[str(CORE)],
        depends=[str(path) for path in sources],
        define_macros=[
            ("WAVRY_LAYOUT_DIGEST", f'"{digest_of([CORE / "layout.h"])}"'),
            ("WAVRY_SOURCES_DIGEST", f'"{digest_of(sources)}"'),
        ],
        extra_compile_args=[
            "-O2",
            "-fno-strict-aliasing",
            "-Werror=implicit-function-declaration",
            *sanitizer_flags(),
            # What Cython writes takes a minute to optimise with all those checks in it.
            *(["-O0"] if sanitize else []),
        ],
        extra_link_args=sanitizer_flags(),
        optional=wanted != "require",
    )
    cython_dir = "build/cython-sanitized" if sanitize else "build/cython"
    # Cython copies headers there, and the C file beside them would include the copy of an older
    # build, whose structs may be other ones.
    shutil.rmtree(cython_dir, ignore_errors=True)
    return list(cythonize([shell], build_dir=cython_dir, force=True, quiet=True))


wanted = os.environ.get("WAVRY_BUILD_NATIVE", "try")
if wanted not in ("require", "skip", "try"):
    sys.exit("WAVRY_BUILD_NATIVE must be require, skip or try")
sanitize = os.environ.get("WAVRY_BUILD_SANITIZE", "")
listing = runpy.run_path(str(ENGINE / "sources.py"))
sources: list[Path] = listing["native_sources"](ENGINE)
possible = sys.platform == "linux"
if wanted == "require" and not possible:
    sys.exit("the native engine needs Linux")
setup(
    ext_modules=extensions() if wanted != "skip" and possible else [],
    cmdclass={"build_ext": BuildNative},
)
