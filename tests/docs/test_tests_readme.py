"""tests/README.md lists each folder of tests, and no other."""

import re
from pathlib import Path

from support.paths import TESTS

README = (TESTS / "README.md").read_text()


def folders_with_tests() -> set[str]:
    files: list[Path] = [*TESTS.rglob("test_*.py"), *TESTS.rglob("images_*.py")]
    return {str(path.parent.relative_to(TESTS)) for path in files}


def test_each_suite_is_listed_once_and_exists() -> None:
    listed = re.findall(r"^\| \[([\w/]+)\]\(([\w/]+)\) \|", README, re.MULTILINE)
    assert all(text == target for text, target in listed)
    names = [text for text, _ in listed]
    assert len(names) == len(set(names))
    assert set(names) == folders_with_tests()


def test_files_and_targets_that_it_names_exist() -> None:
    makefile = (TESTS.parent / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\btests/[\w/.]+", README):
        assert (TESTS.parent / path).exists(), path
