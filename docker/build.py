"""Builds the images with buildah, on a machine that need not reach any image registry.

Run by ``make images``.  The base is made by debootstrap from Debian's packages, once, and kept;
``--base pinned`` takes the one that docker/Dockerfile pins.  Images and layers stay below
build/images.  Writes build/images.json: the size of each image, and what it adds to the base.
"""

import argparse
import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parent.parent
ROLES: Final = ("gateway", "master", "relay", "peer")
DEBIAN: Final = "bookworm"
LOCAL_BASE: Final = f"localhost/wavry-base:{DEBIAN}"
NEEDED: Final = ("buildah", "debootstrap")
NOT_IN_SLIM: Final = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt",
                      "var/lib/apt/lists", "var/log")  # fmt: skip
"""What Debian's own slim images leave out, or have empty."""
BUILD_CA: Final = "/run/wavry-build-ca.crt"
"""Where docker/Dockerfile mounts the secret ca.crt."""


class Store:
    """Images and layers in a directory of ours.

    Args:
        directory: kept between runs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.options = (
            "--root", str(self.directory / "storage"), "--runroot", str(self.directory / "run"),
        )  # fmt: skip

    def buildah(self, *words: str, capture: bool = False) -> str:
        """Run buildah on this store; its output where it is captured."""
        done = subprocess.run(  # noqa: S603  # our own words
            ["buildah", *self.options, *words],  # noqa: S607  # Debian's, from the PATH
            check=True,
            text=True,
            stdout=subprocess.PIPE if capture else sys.stderr,
        )
        return done.stdout or ""

    def has(self, image: str) -> bool:
        """Whether an image is here."""
        return bool(
            self.buildah("images", "--quiet", "--filter", f"reference={image}", capture=True)
        )

    def layers(self, image: str) -> dict[str, int]:
        """Digest and unpacked size in bytes of each layer of an image, the lowest first."""
        text = self.buildah("inspect", "--type", "image", image, capture=True)
        manifest = json.loads(json.loads(text)["Manifest"])
        return {layer["digest"]: layer["size"] for layer in manifest["layers"]}

    def let_go(self) -> None:
        """Undo the mount that the overlay driver leaves, so that the directory can be removed."""
        for mount in ("storage/overlay", "storage"):
            path = str(self.directory / mount)
            if any(
                line.split()[1] == path for line in Path("/proc/mounts").read_text().splitlines()
            ):
                subprocess.run(["umount", path], check=True)  # noqa: S603, S607  # as above


def make_base(store: Store) -> None:
    """Build a minimal Debian from its packages, as image `LOCAL_BASE`."""
    if store.has(LOCAL_BASE):
        return
    with tempfile.TemporaryDirectory(dir=store.directory, prefix="base-") as scratch:
        root = Path(scratch) / "root"
        print(f"making {LOCAL_BASE} with debootstrap", file=sys.stderr, flush=True)
        subprocess.run(  # noqa: S603  # our own words
            ["debootstrap", "--variant=minbase", DEBIAN, str(root)],  # noqa: S607  # Debian's, from the PATH
            check=True,
            stdout=subprocess.DEVNULL,
        )
        _add_updates(root / "etc/apt/sources.list")
        for name in NOT_IN_SLIM:
            for entry in (root / name).iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        container = store.buildah("from", "--quiet", "scratch", capture=True).strip()
        store.buildah("add", "--quiet", container, str(root), "/")
        store.buildah("config", "--cmd", "bash", container)
        store.buildah("commit", "--quiet", "--rm", container, LOCAL_BASE)


def _add_updates(sources: Path) -> None:
    """Add the security updates of the release: a fresh tree names the release alone."""
    _, mirror, _, *components = sources.read_text().split()
    rest = " ".join(components)
    sources.write_text(
        f"deb {mirror} {DEBIAN} {rest}\n"
        f"deb {mirror} {DEBIAN}-updates {rest}\n"
        f"deb {mirror}-security {DEBIAN}-security {rest}\n"
    )


def build(store: Store, role: str, base: str, version: str, context: Path) -> str:
    """Build the image of a role; its name."""
    name = f"localhost/wavry-{role}:{version}"
    arguments = ["--build-arg", f"BASE={base}"] if base != "pinned" else []
    with tempfile.TemporaryDirectory() as scratch:
        secrets = [f"id={name},src={file}" for name, file in pip_files(Path(scratch)).items()]
        store.buildah(
            "build", "--isolation", "chroot", "--format", "docker", "--layers", "--quiet",
            "--file", str(context / "docker/Dockerfile"), "--target", role, "--tag", name,
            "--build-arg", f"VERSION={version}", *arguments,
            *(word for secret in secrets for word in ("--secret", secret)),
            str(context),
        )  # fmt: skip
    return name


def measure(store: Store, image: str, base: str) -> dict[str, Any]:
    """Size of an image, unpacked, and what of it is not the base; in bytes."""
    layers = store.layers(image)
    below = next(iter(layers)) if base == "pinned" else list(store.layers(base))[-1]
    upper = list(layers).index(below) + 1
    return {
        "image": image,
        "size_bytes": sum(layers.values()),
        "above_base_bytes": sum(list(layers.values())[upper:]),
        "layers": layers,
    }


def pip_files(directory: Path) -> dict[str, Path]:
    """Files with this machine's settings of pip: ``pip.conf``, and ``ca.crt`` where it has one.

    `directory` takes what has to be written.  The settings name the certificate as `BUILD_CA`.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True, text=True, capture_output=True,
    ).stdout  # fmt: skip
    found = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = value.strip("'\"")
    config = configparser.ConfigParser(interpolation=None)
    config["global"] = {
        name: found[name]
        for name in ("index-url", "extra-index-url", "timeout", "trusted-host")
        if name in found
    }
    files = {}
    if "cert" in found:
        config["global"]["cert"] = BUILD_CA
        files["ca.crt"] = Path(found["cert"])
    if config["global"]:
        files["pip.conf"] = directory / "pip.conf"
        with files["pip.conf"].open("w") as file:
            config.write(file)
    return files


def version() -> str:
    """Of the distribution."""
    project: str = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    return project


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "roles", nargs="*", metavar="ROLE", help=f"of {', '.join(ROLES)}; default: all"
    )
    parser.add_argument("--base", default="debootstrap", help="debootstrap, pinned, or an image")
    parser.add_argument("--version", default=version(), help="tag of the images")
    parser.add_argument("--context", type=Path, default=REPOSITORY, help="the repository")
    parser.add_argument("--store", type=Path, default=REPOSITORY / "build/images")
    asked = parser.parse_args(arguments)
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is missing: run `.ci/system-packages images` as root")
    if os.geteuid() != 0:
        sys.exit("building needs root (chroot, debootstrap); with docker: see docs/containers.md")
    asked.store.mkdir(parents=True, exist_ok=True)
    store = Store(asked.store)
    try:
        base = asked.base
        if base == "debootstrap":
            make_base(store)
            base = LOCAL_BASE
        sizes = {}
        for role in asked.roles or ROLES:
            name = build(store, role, base, asked.version, asked.context)
            sizes[role] = measure(store, name, base)
            print(f"{name}: {sizes[role]['size_bytes'] / 1e6:.0f} MB", flush=True)
        (asked.store.parent / "images.json").write_text(json.dumps(sizes, indent=2) + "\n")
    finally:
        store.let_go()


if __name__ == "__main__":
    main()
