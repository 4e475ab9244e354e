import pytest
from support.machines.podman import need_images


@pytest.fixture(scope="module")
def images() -> None:
    """What `make images` has built."""
    need_images()
