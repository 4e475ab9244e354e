"""What docker/ says, for its tests: stages of the Dockerfile, services of compose.yml."""

import json
import re
import resource
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from support.paths import REPOSITORY

DOCKER = REPOSITORY / "docker"
ROLES = ("gateway", "master", "relay", "peer")
USER = "10001:10001"


@dataclass
class Stage:
    """One stage of a Dockerfile, with what it has from the stage below."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def add(self, word: str, rest: str) -> None:
        self.instructions.append((word, rest))
        if word == "ENV":
            self.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
        elif word == "USER":
            self.user = rest
        elif word == "VOLUME":
            self.volumes += tuple(rest.split())
        elif word == "EXPOSE":
            self.ports += tuple(rest.split())
        elif word == "HEALTHCHECK":
            self.health = tuple(json.loads(rest[rest.index("CMD") + 3 :]))
        elif word == "ENTRYPOINT":
            self.entrypoint = tuple(json.loads(rest))
        elif word == "CMD":
            self.command = tuple(json.loads(rest))


def stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            below = found.get(base)
            stage = Stage(name, base) if below is None else _on_top_of(below, name)
            found[name] = stage
        elif word and stage is not None:
            stage.add(word, " ".join(rest.split()))
    return found


def _on_top_of(below: Stage, name: str) -> Stage:
    return replace(
        below, name=name, base=below.name, instructions=[], environment=dict(below.environment)
    )


_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:(?P<kind>:-|:\?)(?P<text>[^}]*))?\}")


def compose(**variables: str) -> dict[str, Any]:
    """compose.yml with the variables of docker/.env put in, as docker compose does."""

    def value(match: re.Match[str]) -> str:
        given = variables.get(match["name"], "")
        if not given and match["kind"] == ":?":
            raise KeyError(match["name"])
        return given or (match["text"] or "" if match["kind"] == ":-" else "")

    text = (DOCKER / "compose.yml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(value, text))
    return loaded


def compose_variables() -> set[str]:
    """Names of the variables that compose.yml takes."""
    return {match["name"] for match in _VARIABLE.finditer((DOCKER / "compose.yml").read_text())}


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = service.get("environment", {})
    return found


def role_of(service: dict[str, Any]) -> str | None:
    """Role whose image a service runs; None for images of others."""
    match = re.fullmatch(r"wavry-([a-z]+):.+", service["image"])
    return match[1] if match else None


def volumes_of(service: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Source, target and options of each mount."""
    rows = []
    for text in service.get("volumes", []):
        source, target, *options = text.split(":")
        rows.append((source, target, ",".join(options)))
    return rows


def limit_options(files: int) -> list[str]:
    """Limits for ``podman run``: its defaults are above what a machine in a sandbox may give."""
    wanted = {"nofile": (resource.RLIMIT_NOFILE, files), "nproc": (resource.RLIMIT_NPROC, 4096)}
    options = []
    for name, (kind, number) in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = number if hard == resource.RLIM_INFINITY else min(number, hard)
        options += ["--ulimit", f"{name}={most}:{most}"]
    return options


def podman_options(
    service: dict[str, Any], *, secrets: Path | None = None, volume_prefix: str = ""
) -> list[str]:
    """Options of ``podman run`` that do what a service of compose.yml says; without its network."""
    options = ["--user", service["user"]]
    options += ["--read-only"] if service["read_only"] else []
    for capability in service["cap_drop"]:
        options += ["--cap-drop", capability]
    for item in service["security_opt"]:
        options += ["--security-opt", item.removesuffix(":true")]
    for item in service["tmpfs"]:
        options += ["--tmpfs", item]
    options += limit_options(service["ulimits"]["nofile"]["hard"])
    options += ["--pids-limit", str(service["pids_limit"])]
    if "shm_size" in service:
        options += ["--shm-size", service["shm_size"]]
    for name, value in environment_of(service).items():
        options += ["--env", f"{name}={value}"]
    for source, target, _ in volumes_of(service):
        options += ["--volume", f"{volume_prefix}{source}:{target}"]
    for name in service.get("secrets", []):
        assert secrets is not None
        options += ["--volume", f"{secrets / name}:/run/secrets/{name}:ro"]
    if "entrypoint" in service:
        options += ["--entrypoint", json.dumps(service["entrypoint"])]
    return options
