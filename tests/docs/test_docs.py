"""The documents say what is true of the code."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer
from support.paths import REPOSITORY

from wavry_cp.master.config import MasterConfig, check
from wavry_peer.service.settings import load_layers

DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text()
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = load_generator()


def leaf_commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield path, command
    for name, sub in subcommands.items():
        yield from leaf_commands(sub, f"{path} {name}")


COMMANDS = [
    pytest.param(path, command, id=path)
    for name, app in GENERATE.COMMANDS.items()
    for path, command in leaf_commands(typer.main.get_command(app), name)
]


@pytest.mark.parametrize("page", sorted(GENERATE.PAGES))
def test_generated_page_is_what_the_code_gives(page: str) -> None:
    assert (DOCS / page).read_text() == GENERATE.PAGES[page](), "run `make docs` and commit"


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_each_command_has_help_with_an_example(path: str, command: click.Command) -> None:
    text = command.help or ""
    assert len(text) > 20
    assert "Example" in text, f"{path} has no example"


@pytest.mark.parametrize(
    ("path", "command"),
    # The services run in the foreground; they have a ready file instead.
    [case for case in COMMANDS if str(case.values[0]).startswith(("wavryctl", "wavry-peer"))],
)
def test_each_wavryctl_and_peer_command_has_json(path: str, command: click.Command) -> None:
    assert "--json" in {name for option in command.params for name in option.opts}


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in DOCUMENTS]
)
def test_commands_and_links_in_documents_exist(path: Path) -> None:
    document = path.read_text()
    known = {path for path, _ in ((p.values[0], p) for p in COMMANDS)}
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", document, re.DOTALL):
        for line in block.splitlines():
            words = line.removeprefix("$ ").split()
            if not words or words[0] not in GENERATE.COMMANDS:
                continue
            typed = " ".join(word for word in words if re.fullmatch(r"[a-z-]+", word))
            assert any(typed.startswith(name) for name in known) or "--version" in line, line
    for target in re.findall(r"\]\(([^)#:]+)\)", document):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in DOCUMENTS]
)
def test_files_of_ours_that_a_document_names_exist(path: Path) -> None:
    """Paths below a folder of the repository, in prose and in commands; not those that are made."""
    tops = "wavry_peer|wavry_relay|wavry_cp|loadtest|tests|docs|docker|examples|systemd-examples"
    text = path.read_text()
    named = set(re.findall(rf"(?<![\w./-])(?:{tops})/[\w./-]*\w/?", text))
    made = {"docker/secrets", "docker/.env"}
    missing = {
        name
        for name in named
        if not name.startswith(tuple(made)) and not (REPOSITORY / name).exists()
    }
    assert not missing


def test_readme_names_both_commands_and_every_make_target_it_uses() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make demo" in README
    assert "make test" in README


def test_every_setting_variable_that_documents_name_exists() -> None:
    reference = GENERATE.configuration()
    others = {"WAVRY_GATEWAY_URL", "WAVRY_MASTER_URL", "WAVRY_ADMIN_TOKEN", "WAVRY_DEV_DIR",
              "WAVRY_ADMIN_TOKEN_FILE", "WAVRY_PASSWORD", "WAVRY_PEER_HOME",
              "WAVRY_BUILD_SANITIZE", "WAVRY_BUILD_NATIVE", "WAVRY_VERSION",
              "WAVRY_SERVICE_TOKEN_FILE", "WAVRY_ALLOW_HTTP", "WAVRY_PEER_ALLOW_HTTP"}  # fmt: skip
    for document in (path.read_text() for path in DOCUMENTS):
        for variable in set(re.findall(r"\bWAVRY_[A-Z0-9_]*[A-Z0-9]\b", document)):
            assert variable in reference or variable in others, variable


def test_the_settings_file_of_the_guide_fits(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (DOCS / "operating.md").read_text(), re.M | re.S)
    file = tmp_path / "master.toml"
    file.write_text(text)
    config = load_layers(MasterConfig, {}, file_field="settings_file", settings_file=file)
    check(config)
    assert config.trusted_proxies == ("127.0.0.0/8",)
