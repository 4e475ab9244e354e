"""The version is read once: /health asks for it at each call."""

import pytest

from wavry_peer.service import version


def test_the_metadata_of_the_package_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def count(name: str) -> str:
        asked.append(name)
        return "1.2.3"

    monkeypatch.setattr(version, "version", count)
    version.software_version.cache_clear()
    try:
        assert [version.software_version() for _ in range(3)] == ["1.2.3"] * 3
    finally:
        version.software_version.cache_clear()
    assert asked == ["wavry"]
