"""Order of the suite: files that take minutes begin first, so that no worker waits for them alone.

The distribution by file otherwise hands out the files with the most tests first, which are the
quickest; `make test` turns that off.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support import prefork
from support.needs import need_native

# A shell starts a background job with Ctrl-C ignored, and its programs inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Every process of a test would otherwise compile the whole project anew: a quarter of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
subprocess.Popen = prefork.Popen  # type: ignore[misc] # a class in place of the library's

LONG_FIRST = (
    "docs/test_runbooks",
    "system/integration/",
    "system/",
    "unit/loadtest/",
    "fuzz/",
    "release/",
    "unit/engine/",
    "unit/relay/",
)
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(TESTS).as_posix()
        places = (at for at, prefix in enumerate(LONG_FIRST) if name.startswith(prefix))
        return next(places, len(LONG_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def native() -> None:
    """For tests of the native engine."""
    need_native()
