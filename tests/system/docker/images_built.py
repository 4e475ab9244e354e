"""What lies in the images that ``make images`` built; it runs this file itself."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.machines.containers import ROLES, USER, stages
from support.machines.podman import PODMAN, store_in_use
from support.paths import REPOSITORY

SIZES: dict[str, Any] = {}
CANARY = b"canary-4f1d2b7c-of-a-secret-that-lies-in-the-tree"
PLANTED = (
    "docker/secrets/admin_token", "docker/.env", ".env", "build/dev/service.token", "id_ed25519",
    "wavry_cp/master/root.key", "wavry_relay/identity.key", "wavry_peer/.env", "tests/x.pem",
    "docker/requirements/notes.token",
)  # fmt: skip
COMPILERS = re.compile(
    r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|clang|clang\+\+|tcc|ld|ld\.(bfd|gold|lld)|as|make|rustc|go|cc1"
    r"|cc1plus|collect2|lto1|cython|cythonize)(-[\d.]+)?"
)
PACKAGERS = re.compile(
    r"(.*/)?(site|dist)-packages/(pip|setuptools|Cython|cython\.py)(/.*)?|.*/bin/pip[\d.]*"
)
PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{20}")
SECRET_NAMES = re.compile(
    r"(.*/)?(\.env|\.netrc|\.pypirc|\.git|pip\.conf|id_(rsa|dsa|ecdsa|ed25519)"
    r"|[^/]*\.(key|token)|(service|admin)[._]token|\.bash_history)"
)
SELF_TEST_KEYS = re.compile(r"usr/lib/[^/]*/libgnutls\.so\.[\d.]+")
"""A library of Debian's base with the keys of its own self-test, the same on every machine."""


pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture(scope="module", autouse=True)
def sizes() -> dict[str, Any]:
    SIZES.update(json.loads((REPOSITORY / "build/images.json").read_text()))
    assert set(SIZES) == set(ROLES)
    return SIZES


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The images once more, from a tree in which secrets lie; unchanged steps are kept."""
    tree = tmp_path_factory.mktemp("context") / "tree"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tree / name)
    for name in PLANTED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(CANARY)
    for path in tree.rglob("*"):  # Times of directories are part of what COPY brings.
        if path.is_dir() and (REPOSITORY / path.relative_to(tree)).is_dir():
            shutil.copystat(REPOSITORY / path.relative_to(tree), path)
    before = (REPOSITORY / "build/images.json").read_text()
    try:
        subprocess.run(
            [sys.executable, str(REPOSITORY / "docker/build.py"), "--context", str(tree),
             "--version", "canary"],
            check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads((REPOSITORY / "build/images.json").read_text())
    finally:
        (REPOSITORY / "build/images.json").write_text(before)
    return found


@pytest.fixture(scope="module")
def layers(planted: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every layer of all images of both builds, as tar files."""
    target = tmp_path_factory.mktemp("layers")
    images = [item["image"] for found in (SIZES, planted) for item in found.values()]
    try:
        with store_in_use():
            subprocess.run(
                [*PODMAN, "save", "--quiet", "--multi-image-archive",
                 "--output", str(target / "all.tar"), *images],
                check=True,
            )  # fmt: skip
        with tarfile.open(target / "all.tar") as archive:
            archive.extractall(target / "all", filter="data")
        (target / "all.tar").unlink()
        yield target / "all"
    finally:
        with store_in_use():
            names = [item["image"] for item in planted.values()]
            subprocess.run([*PODMAN, "rmi", *names], check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(target)


def layer_files(layers: Path) -> list[Path]:
    found = [path for path in sorted(layers.glob("*.tar")) if not path.is_symlink()]
    expected = {digest.partition(":")[2] for item in SIZES.values() for digest in item["layers"]}
    assert expected <= {path.stem for path in found}
    return found


def test_no_layer_holds_a_compiler_pip_or_a_secret(layers: Path) -> None:
    faults, seen = [], 0
    for path in layer_files(layers):
        with tarfile.open(path) as layer:
            for member in layer:
                name = member.name.removeprefix("./")
                seen += 1
                if "/bin/" in f"/{name}" and COMPILERS.fullmatch(Path(name).name):
                    faults.append(f"compiler: {name}")
                if "/lib/gcc" in f"/{name}/" and Path(name).name in ("cc1", "collect2"):
                    faults.append(f"compiler: {name}")
                if name.endswith("Python.h") or PACKAGERS.fullmatch(name):
                    faults.append(f"build tool: {name}")
                if SECRET_NAMES.fullmatch(name):
                    faults.append(f"secret by its name: {name}")
                if member.isfile() and (file := layer.extractfile(member)) is not None:
                    content = file.read()
                    if CANARY in content:
                        faults.append(f"planted secret: {name}")
                    if PRIVATE.search(content) and not SELF_TEST_KEYS.fullmatch(name):
                        faults.append(f"private key: {name}")
    assert seen > 1000
    assert not faults


def test_the_scan_finds_what_it_looks_for() -> None:
    for name in ("usr/bin/gcc", "usr/bin/x86_64-linux-gnu-gcc-12", "usr/bin/ld", "usr/bin/cc"):
        assert COMPILERS.fullmatch(Path(name).name)
    assert not COMPILERS.fullmatch("ldd")
    for name in ("opt/wavry/lib/python3.11/site-packages/pip/__init__.py", "opt/wavry/bin/pip3"):
        assert PACKAGERS.fullmatch(name)
    for name in ("src/.env", "var/lib/wavry/identity.key", "etc/pip.conf", "run/service_token"):
        assert SECRET_NAMES.fullmatch(name)
    assert PRIVATE.search(b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIP")


def test_history_and_environment_hold_no_secret(layers: Path) -> None:
    configurations = [
        path.read_bytes() for path in layers.glob("*.json") if path.name != "manifest.json"
    ]
    assert len(configurations) >= len(ROLES)
    for raw in configurations:
        assert CANARY not in raw
        assert not re.search(rb"https?://[^/\s\"]*:[^/\s\"]*@", raw), "a URL with a password"
        config = json.loads(raw)["config"]
        assert config["User"] == USER
        assert config["Healthcheck"]["Test"][2] == "health"


def test_secrets_in_the_tree_do_not_even_change_a_layer(planted: dict[str, Any]) -> None:
    """They never reach the build: each image has the layers that it had without them."""
    for role in ROLES:
        assert planted[role]["layers"] == SIZES[role]["layers"], role


def test_images_share_their_lower_layers() -> None:
    stacks = {role: list(SIZES[role]["layers"]) for role in ROLES}
    assert stacks["gateway"] == stacks["master"]
    for stack in stacks.values():
        assert stack[:-1] == stacks["peer"][:-1]


def test_readme_has_the_sizes() -> None:
    """Measured once; packages grow slowly, so a tenth is allowed before the table is renewed."""
    readme = (REPOSITORY / "README.md").read_text()
    for role in ROLES:
        row = re.search(rf"\| `wavry-{role}` \| (\d+) MB \| (\d+) MB \|", readme)
        assert row is not None, f"README has no size of {role}"
        for text, key in ((row[1], "size_bytes"), (row[2], "above_base_bytes")):
            assert SIZES[role][key] / 1e6 == pytest.approx(int(text), rel=0.1), (role, key)


def test_the_relay_layer_has_the_native_engine(layers: Path) -> None:
    own = list(SIZES["relay"]["layers"])[-1].partition(":")[2]
    with tarfile.open(layers / f"{own}.tar") as layer:
        engines = [name for name in layer.getnames() if re.search(r"engine/_native.*\.so$", name)]
        assert len(engines) == 1
        file = layer.extractfile(engines[0])
        assert file is not None
        assert io.BytesIO(file.read(4)).read() == b"\x7fELF"
    assert stages((REPOSITORY / "docker/Dockerfile").read_text())["relay"].user == USER
