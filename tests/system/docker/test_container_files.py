"""docker/ says what is true: images, settings, volumes, ports, and what the lock files pin."""

import importlib.metadata
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.machines.containers import (
    DOCKER,
    ROLES,
    USER,
    compose,
    compose_variables,
    environment_of,
    role_of,
    stages,
    volumes_of,
)
from support.paths import REPOSITORY
from support.relay.mint import Mint

from wavry_cp.gateway.cli import app as gateway_app
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.master.cli import app as master_app
from wavry_cp.master.config import MasterConfig
from wavry_cp.master.config import check as check_master
from wavry_peer.cli.app import app as peer_app
from wavry_peer.service.settings import SettingsError, describe, load, parse_address
from wavry_relay.cli import app as relay_app
from wavry_relay.config import RelayConfig

CONFIGS: dict[str, Any] = {
    "gateway": GatewayConfig,
    "master": MasterConfig,
    "relay": RelayConfig,
}
APPS = {"gateway": gateway_app, "master": master_app, "relay": relay_app, "peer": peer_app}
OTHER_VARIABLES = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "WAVRY_PEER_HOME"}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
STAGES = stages(DOCKERFILE)
COMPOSE = compose(
    WAVRY_VERSION=VERSION,
    WAVRY_RELAY_ADVERTISE="203.0.113.7:4500",
    WAVRY_RELAY_ROOT_KEY=Mint().root_text,
)
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if role_of(service)}
RUNNING = {name: service for name, service in OURS.items() if not service.get("profiles")}
OPS_SUBNET = COMPOSE["networks"]["ops"]["ipam"]["config"][0]["subnet"]
LOCKS = {"peer": None, "relay": "relay", "control-plane": "cp", "build": None}


def settings_of(name: str) -> Any:
    """Settings that a service has, read by the role's own code."""
    role = role_of(RUNNING[name])
    assert role is not None
    environment = STAGES[role].environment | environment_of(RUNNING[name])
    return load(CONFIGS[role], environment)


# -- Dockerfile ------------------------------------------------------------------------------


def test_each_role_has_an_image_for_an_unprivileged_user_with_a_health_check() -> None:
    for role in ROLES:
        stage = STAGES[role]
        assert stage.user == USER
        assert stage.volumes == ("/var/lib/wavry",)
        assert stage.entrypoint == (f"wavry-{role}",)
        assert stage.health == (f"wavry-{role}", "health")
        commands = typer.main.get_command(APPS[role]).commands  # type: ignore[attr-defined]  # a group
        assert "health" in commands
        assert stage.command == ("--help",) or stage.command[0] in commands


def test_the_base_is_pinned_by_digest_and_can_be_replaced() -> None:
    (base,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", base)
    for stage in STAGES.values():
        assert stage.base == "${BASE}" or stage.base in STAGES
    assert "latest" not in DOCKERFILE


def test_compiler_and_pip_are_in_no_stage_below_an_image() -> None:
    for role in ROLES:
        below, stage = [], STAGES[role]
        while stage.base != "${BASE}":
            below.append(stage)
            stage = STAGES[stage.base]
        text = " ".join(rest for item in [*below, stage] for _, rest in item.instructions)
        for name in ("gcc", "libc6-dev", "python3-dev", "python3-venv", "python3-pip"):
            assert name not in text, (role, name)


def test_every_package_is_installed_by_hash_and_the_relay_requires_the_native_engine() -> None:
    for stage in STAGES.values():
        for word, rest in stage.instructions:
            if "pip" in rest and " install " in rest and word == "RUN" and "apt-get" not in rest:
                assert "--require-hashes" in rest or "--no-index" in rest, rest
            assert word != "ADD", "ADD fetches from anywhere"
    (build,) = (rest for _, rest in STAGES["native"].instructions if "pip wheel" in rest)
    assert build.startswith("WAVRY_BUILD_NATIVE=require ")
    copied = [rest for word, rest in STAGES["relay-installed"].instructions if word == "COPY"]
    assert "--from=native /wheels /wheels" in copied
    assert STAGES["relay"].environment["WAVRY_RELAY_ENGINE"] == "native"


def test_no_image_holds_a_secret_in_its_environment() -> None:
    for role in ROLES:
        for name in STAGES[role].environment:
            assert not re.search(r"TOKEN|PASSWORD|SECRET|KEY", name) or name.endswith(
                ("_FILE", "_DIR")
            ), name
    for words in DOCKERFILE.splitlines():
        assert not re.match(r"ARG .*(TOKEN|PASSWORD|SECRET|INDEX)", words), words


def test_the_build_context_is_a_list_of_what_is_needed() -> None:
    lines = [
        line
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for stage in STAGES.values():
        for word, rest in stage.instructions:
            if word == "COPY" and not rest.startswith("--from"):
                copied |= set(rest.split()[:-1])
    assert {name for name in copied if not name.startswith("docker/")} <= allowed
    assert all(name.startswith("docker/requirements/") for name in copied - allowed)
    assert all((REPOSITORY / name).exists() for name in copied | allowed)


def test_git_keeps_no_secret_of_compose() -> None:
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert {"docker/secrets/", "docker/.env"} <= set(ignored)


# -- compose.yml -----------------------------------------------------------------------------


def test_one_variable_tags_every_image_of_ours() -> None:
    raw = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]
    for service in raw.values():
        if service["image"].startswith("wavry-"):
            assert re.fullmatch(r"wavry-[a-z]+:\$\{WAVRY_VERSION:\?[^}]+\}", service["image"])
        else:
            assert re.fullmatch(r"[a-z./]+:v[\d.]+@sha256:[0-9a-f]{64}", service["image"])
    with pytest.raises(KeyError, match="WAVRY_VERSION"):
        compose()
    example = dict(
        line.split("=", 1)
        for line in (DOCKER / ".env.example").read_text().splitlines()
        if not line.startswith("#")
    )
    assert set(example) == compose_variables()
    assert example["WAVRY_VERSION"] == VERSION


def test_each_service_runs_an_image_that_the_dockerfile_has() -> None:
    assert {role_of(service) for service in RUNNING.values()} == {"gateway", "master", "relay"}
    for service in OURS.values():
        assert role_of(service) in ROLES
        if build := service.get("build"):
            assert build["target"] == role_of(service)
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    uid, gid = service["user"].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert service.get("network_mode") in (None, "none")
    assert all(source != "/var/run/docker.sock" for source, _, _ in volumes_of(service))


@pytest.mark.parametrize("name", RUNNING)
def test_every_variable_is_a_setting_and_all_values_fit(name: str) -> None:
    role = role_of(RUNNING[name])
    assert role is not None
    known = {row.variable for row in describe(CONFIGS[role])}
    given = set(STAGES[role].environment) | set(environment_of(RUNNING[name]))
    assert given - OTHER_VARIABLES <= known
    config = settings_of(name)
    if role == "master":
        check_master(config)


@pytest.mark.parametrize("missing", ["WAVRY_RELAY_ADVERTISE", "WAVRY_RELAY_ROOT_KEY"])
def test_a_relay_without_its_two_variables_says_so(missing: str) -> None:
    given = {
        "WAVRY_VERSION": VERSION,
        "WAVRY_RELAY_ADVERTISE": "203.0.113.7:4500",
        "WAVRY_RELAY_ROOT_KEY": Mint().root_text,
    }
    environment = environment_of(compose(**(given | {missing: ""}))["services"]["relay"])
    with pytest.raises(SettingsError, match=missing):
        load(RelayConfig, STAGES["relay"].environment | environment)


def test_variables_of_the_image_of_the_peer_are_known() -> None:
    options = {
        variable
        for command in typer.main.get_command(peer_app).commands.values()  # type: ignore[attr-defined]  # a group
        for option in command.params
        for variable in [getattr(option, "envvar", None)]
    }
    assert set(STAGES["peer"].environment) - OTHER_VARIABLES == set()
    assert "WAVRY_PEER_HOME" in options


@pytest.mark.parametrize("name", OURS)
def test_state_is_in_the_volume_and_nothing_else_is_mounted(name: str) -> None:
    service = OURS[name]
    role = role_of(service)
    assert role is not None
    (mount,) = volumes_of(service)
    assert mount == (role, "/var/lib/wavry", "")
    assert mount[1] in STAGES[role].volumes
    writes = {
        variable: Path(value)
        for variable, value in STAGES[role].environment.items()
        if variable.endswith("_DIR")
    }
    assert writes
    for variable, path in writes.items():
        assert path.is_relative_to(mount[1]), variable


def test_every_volume_secret_and_network_is_declared_and_used() -> None:
    mounts = [mount for service in SERVICES.values() for mount in volumes_of(service)]
    named = {source for source, _, _ in mounts if not source.startswith((".", "/"))}
    assert named == set(COMPOSE["volumes"])
    for source, _, options in mounts:
        if source.startswith("."):
            assert options == "ro"
            assert (DOCKER / source).is_dir(), source
    assert {name for service in SERVICES.values() for name in service.get("secrets", [])} == set(
        COMPOSE["secrets"]
    )
    assert {name for service in SERVICES.values() for name in service.get("networks", [])} == set(
        COMPOSE["networks"]
    )


@pytest.mark.parametrize("name", ["gateway", "master"])
def test_tokens_come_from_secret_files(name: str) -> None:
    config = settings_of(name)
    mounted = {f"/run/secrets/{secret}" for secret in RUNNING[name]["secrets"]}
    assert {str(config.service_token_file), str(config.admin_token_file)} == mounted
    for secret in RUNNING[name]["secrets"]:
        assert COMPOSE["secrets"][secret]["file"].startswith("./secrets/")


def test_no_secret_is_in_an_environment() -> None:
    for service in SERVICES.values():
        for name in environment_of(service):
            public = name in ("WAVRY_RELAY_ROOT_KEY",)
            assert public or not re.search(r"TOKEN|PASSWORD|SECRET|KEY", name), name


def ports_of(service: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Host address, container port and protocol of each published port."""
    rows = []
    for text in service.get("ports", []):
        address, protocol = text.split("/")
        *host, _, inner = address.split(":")
        rows.append((":".join(host), int(inner), protocol))
    return rows


def test_only_the_relays_udp_port_is_published_to_the_world() -> None:
    public = {
        (name, port, protocol)
        for name, service in SERVICES.items()
        for host, port, protocol in ports_of(service)
        if host != "127.0.0.1"
    }
    (listen,) = settings_of("relay").listen
    assert public == {("relay", parse_address(listen)[1], "udp")}


def test_ports_are_those_that_the_roles_listen_on() -> None:
    gateway = parse_address(settings_of("gateway").listen)[1]
    master = parse_address(settings_of("master").listen)[1]
    relay = parse_address(settings_of("relay").listen[0])[1]
    assert STAGES["gateway"].ports == (f"{gateway}/tcp",)
    assert STAGES["master"].ports == (f"{master}/tcp",)
    assert STAGES["relay"].ports == (f"{relay}/udp",)
    assert ports_of(RUNNING["gateway"]) == [("127.0.0.1", gateway, "tcp")]
    assert ports_of(RUNNING["master"]) == [("127.0.0.1", master, "tcp")]
    for name in ("gateway", "relay"):
        assert settings_of(name).master_url == f"http://master:{master}"
        assert "ops" in RUNNING[name]["networks"]
    assert "ops" in RUNNING["master"]["networks"]


def test_metrics_are_for_the_inner_network_alone() -> None:
    assert COMPOSE["networks"]["ops"]["internal"] is True
    for name in ("gateway", "master"):
        networks = settings_of(name).metrics_networks
        assert set(networks) == {"127.0.0.0/8", OPS_SUBNET}
    for name, network in (("gateway", "front"), ("master", "back")):
        subnet = COMPOSE["networks"][network]["ipam"]["config"][0]["subnet"]
        assert settings_of(name).trusted_proxies == (subnet,)
        assert not ipaddress.ip_network(subnet).overlaps(ipaddress.ip_network(OPS_SUBNET))
        # Whoever shares this network would be believed to be the proxy.
        assert [key for key, item in SERVICES.items() if network in item.get("networks", [])] == [
            name
        ]
    assert set(SERVICES["prometheus"]["networks"]) == {"ops", "view"}


def test_services_start_when_the_master_is_healthy() -> None:
    for name, service in RUNNING.items():
        role = role_of(service)
        assert role is not None
        assert tuple(service["healthcheck"]["test"][1:]) == STAGES[role].health
        assert service["healthcheck"]["test"][0] == "CMD"
        wanted = {} if name == "master" else {"master": {"condition": "service_healthy"}}
        assert service.get("depends_on", {}) == wanted


def test_the_relay_gets_the_time_to_drain_and_the_memory_for_its_tables() -> None:
    relay, config = RUNNING["relay"], settings_of("relay")
    assert int(relay["stop_grace_period"].removesuffix("s")) >= config.drain_timeout_s + 10
    assert int(relay["shm_size"].removesuffix("m")) * 2**20 >= 4 * config.max_sessions * 640
    files = RUNNING["gateway"]["ulimits"]["nofile"]["soft"]
    assert files >= settings_of("gateway").max_connections + 1000


def test_prometheus_scrapes_services_that_compose_has() -> None:
    mounts = {target: source for source, target, _ in volumes_of(SERVICES["prometheus"])}
    (configuration,) = (
        word.partition("=")[2]
        for word in SERVICES["prometheus"]["command"]
        if word.startswith("--config.file=")
    )
    inside = Path(configuration)
    file = DOCKER / mounts[str(inside.parent)] / inside.name
    listening = {
        "gateway": parse_address(settings_of("gateway").listen)[1],
        "master": parse_address(settings_of("master").listen)[1],
        "relay": parse_address(settings_of("relay").ops_listen)[1],
    }
    for pattern in yaml.safe_load(file.read_text()).get("rule_files", []):
        assert list(file.parent.glob(pattern)), pattern
    seen = set()
    for job in yaml.safe_load(file.read_text())["scrape_configs"]:
        for group in job.get("static_configs", []):
            for target in group["targets"]:
                host, port = parse_address(target)
                if host in ("localhost", "127.0.0.1", "prometheus"):
                    assert port == 9090
                    continue
                assert listening[host] == port, target
                seen.add(host)
    assert seen == set(listening)


# -- Lock files ------------------------------------------------------------------------------


def pinned(lock: str) -> dict[str, Version]:
    """Packages of a lock file; each has a version and hashes."""
    text = (DOCKER / "requirements" / f"{lock}.txt").read_text()
    assert "://" not in text, "a lock file names no registry"
    found = {}
    for entry in re.split(r"\n(?=\S)", text):
        if entry.startswith("#"):
            continue
        head, *hashes = entry.replace("\\\n", "\n").split("\n")
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", head.strip())
        assert match, head
        digests = [line.strip() for line in hashes if line.strip()]
        assert digests, head
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in digests), head
        found[canonicalize_name(match[1])] = Version(match[2])
    return found


def asked(lock: str) -> list[Requirement]:
    if lock == "build":
        texts = PROJECT["build-system"]["requires"]
    else:
        extra = LOCKS[lock]
        texts = [
            *PROJECT["project"]["dependencies"],
            *(PROJECT["project"]["optional-dependencies"][extra] if extra else []),
        ]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_fit_pyproject(lock: str) -> None:
    packages = pinned(lock)
    for requirement in asked(lock):
        version = packages.get(canonicalize_name(requirement.name))
        assert version is not None, f"run `make lock`: {requirement.name} is missing"
        assert requirement.specifier.contains(version), f"run `make lock`: {requirement}"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_hold_the_dependencies_of_dependencies(lock: str) -> None:
    packages = pinned(lock)
    wanted = {canonicalize_name(requirement.name) for requirement in asked(lock)}
    checked = 0
    for name, version in packages.items():
        try:
            here = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(here.version) != version:
            continue  # Another version may ask for other things.
        checked += 1
        for text in here.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.add(canonicalize_name(requirement.name))
                assert canonicalize_name(requirement.name) in packages, (name, text)
    if checked == len(packages):  # All are known here, so nothing superfluous can hide.
        assert set(packages) == wanted


def test_each_lock_file_is_used_by_the_dockerfile() -> None:
    used = set(re.findall(r"requirements/([a-z-]+)\.txt", DOCKERFILE))
    present = {path.stem for path in (DOCKER / "requirements").iterdir()}
    assert used == present == set(LOCKS)
