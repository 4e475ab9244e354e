"""Writes the generated pages of docs/: configuration, commands, metrics, monitoring, HTTP.

Run by ``make docs``; tests/docs fails when a page is not what the code gives.
"""

import re
import sys
from pathlib import Path
from typing import Any

import click
import typer
import yaml

from wavry_cp.admin.commands.app import app as wavryctl
from wavry_cp.admin.endpoints import VARIABLES as ADMIN_VARIABLES
from wavry_cp.app.openapi import BODY_ERRORS
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.gateway.cli import app as wavry_gateway
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.gateway.routes import ROUTES as GATEWAY_ROUTES
from wavry_cp.master.cli import app as wavry_master
from wavry_cp.master.config import MasterConfig
from wavry_cp.master.routes import ROUTES as MASTER_ROUTES
from wavry_peer.cli.app import app as wavry_peer
from wavry_peer.cli.login import VARIABLES as PEER_VARIABLES
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.metrics import CATALOGUE, Label
from wavry_peer.service.settings import describe
from wavry_relay.cli import app as wavry_relay
from wavry_relay.config import RelayConfig

__all__ = ["PAGES", "render"]

GENERATED = "<!-- Made by `make docs` from the code; edit there. -->\n\n"
CONFIGURATION_HEAD = """# Configuration

Every role reads environment variables, and below them a file (`--settings-file`, or the variable
`…_SETTINGS_FILE`): TOML where its name ends in `.toml`, with the names below or their short forms
(`listen = "127.0.0.1:8090"`), else `NAME=value` lines. A value that does not fit ends the start
with one line for each variable (exit status 2); the value itself is never printed. `config check`
of each service judges all of it without starting (exit status 1 where something is insecure, 2
where it does not fit), `config show` tells what comes from where. A `WAVRY_…` variable that nobody
reads is named in the log, with the one that is probably meant. "live": a reload of the running
role puts a new value in force (SIGHUP or `wavry-relay reload`); the others wait for a restart.
`SSL_CERT_FILE` names the certificates of an authority of your own, for whoever calls by https.
"""
METRICS_HEAD = """# Metrics

Prometheus text at `/metrics` of each service; how to scrape, alert and plot them:
[monitoring.md](monitoring.md). Every label value is listed, or made by the operator's own settings:
nothing that a stranger sends becomes a series. `other` stays 0; where it grows, please report it.
"""
HTTP_HEAD = """# HTTP

Every call of gateway and master, from the route tables that the services are made of; the forms of
all bodies are in the OpenAPI 3.1 document that each service gives at `/openapi.json`.

A token is shown as `Authorization: Bearer …`. "Who may call" names the least that is needed: an
operator may do what a viewer may, an admin everything; `relay` is the relay that the call is about.
A call that succeeds without an answer is 204.

Every error is `{"error": code, "message": text}`; the text says what to do next. Beside the codes
of a row:

| code | where |
|---|---|
| `unauthorized` (master), `invalid_token` (gateway) | no token or a wrong one is shown: 401 |
| `forbidden` | the token is valid and its role is not enough: 403 |
| `rate_limited` | calls, or wrong tokens, come too often: 429 with `Retry-After` |
| `banned` | the user who calls is banned: 403 |
| `admin_disabled` | the gateway has no admin token file: 403 |
| `admin_check_unavailable` | the gateway cannot ask the master about this admin token: 503 |
| BODY_ERRORS | calls with a body |
| `lockdown` | every call that does not stay open in a lockdown: 503 with `Retry-After` |
| `store_unavailable` | the store cannot answer: 503 with `Retry-After` |
| `not_found`, `method_not_allowed` | nothing is at this path, or not with this method: 404, 405 |
| `internal_error` | our fault: 500; the text has an id that is in the log |
"""
CALLERS = {
    CallerKind.ANYONE: "anyone",
    CallerKind.NETWORK: "the operator's networks",
    CallerKind.USER: "user",
    CallerKind.LOGIN: "user",
    CallerKind.RELAY: "relay",
    CallerKind.RELAY_IN_BODY: "relay",
    CallerKind.SERVICE: "service token",
}
RULES = Path(__file__).parent.parent / "docker" / "prometheus" / "rules" / "wavry.yml"
MONITORING_HEAD = """# Monitoring

Each service exposes Prometheus text at `/metrics`; [metrics.md](metrics.md) lists every metric
with every label value.

## Scrape

`docker/prometheus/prometheus.yml` is the whole configuration for the services of
`docker/compose.yml`. Elsewhere keep its job names, for the alerts name them: `wavry-gateway`,
`wavry-master`, `wavry-relay`.

| job | port | who may read |
|---|---|---|
| `wavry-gateway` | 8090 | `WAVRY_GATEWAY_METRICS_NETWORKS`, or an admin token of role viewer |
| `wavry-master` | 8091 | `WAVRY_MASTER_METRICS_NETWORKS`, or an admin token of role viewer |
| `wavry-relay` | 4501 | whoever reaches `WAVRY_RELAY_OPS_LISTEN`: loopback unless told otherwise |

More relays go into `docker/prometheus/targets/relays.yml`, which Prometheus reads again by itself.
Give `rules/wavry.yml` to every Prometheus that scrapes them; it needs version 2.42 or newer.

What the figures mean:

- **Direct share.** The calling peer tells the gateway on which path a session talks (`POST
  /v1/sessions/{id}/path`); the gateway counts that and no rule depends on it. Sessions of peers
  that do not report are `unreported`, and count neither as direct nor as relayed.
- **Bytes** are UDP payload. A datagram that a limit drops is in
  `wavry_relay_packets_dropped_total` by reason and in `wavry_relay_limited_total` by layer; the
  soft limit only counts, it drops nothing. Leases that a limit refuses are answered with
  `RATE_LIMITED`: they are in `limited`, not in `dropped`.
- **Key end.** A signing key has no end of its own. `WAVRY_MASTER_KEY_LIFETIME_DAYS` is the life
  that you plan for it: alerts remind you, and the key signs on until it is rotated.
- A gauge that comes from the store is `NaN` while the store does not answer.
- `process_*` of a relay is its supervisor; its workers have
  `wavry_relay_worker_cpu_seconds_total`.

## Alerts

The expressions with their limits are in `docker/prometheus/rules/wavry.yml`; `wavry_test.yml` and
`wavry_days_test.yml` beside it show each of them firing and silent. `critical` means that users
are cut off, or soon will be; `warning` can wait until the morning. `…` stands for the figures of
the moment.

"""
MONITORING_TAIL = """
To check a change:

```sh
cd docker/prometheus
promtool check config prometheus.yml
promtool test rules rules/wavry_test.yml rules/wavry_days_test.yml
```

## Dashboard

In Grafana: Dashboards, New, Import, upload `docker/grafana/wavry.json`, and choose the Prometheus
data source. Its rows are Overview, Gateway, Master, Relays, Leases and Keys; `Relay` at the top
narrows the relay panels to some of them.
"""
ROLES = {"Relay": RelayConfig, "Master": MasterConfig, "Gateway": GatewayConfig}
COMMANDS = {
    "wavryctl": wavryctl,
    "wavry-peer": wavry_peer,
    "wavry-relay": wavry_relay,
    "wavry-gateway": wavry_gateway,
    "wavry-master": wavry_master,
}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """Write the configuration reference."""
    parts = [GENERATED, CONFIGURATION_HEAD]
    for role, kind in ROLES.items():
        rows = [
            (
                f"`{row.variable}`",
                row.type,
                row.default or "-",
                row.unit or "-",
                "yes" if row.live else "-",
                row.doc,
            )
            for row in describe(kind)
        ]
        parts.append(f"\n## {role}\n\n")
        parts.append(_table(("variable", "type", "default", "unit", "live", "meaning"), rows))
    for command, variables in (("wavry-peer", PEER_VARIABLES), ("wavryctl", ADMIN_VARIABLES)):
        parts.append(f"\n## {command}\n\nOptions of the command line win over these.\n\n")
        named = [(f"`{name}`", meaning) for name, meaning in variables.items()]
        parts.append(_table(("variable", "meaning"), named))
    return "".join(parts)


def _walk(command: click.Command, path: str) -> list[str]:
    parts = []
    # typer vendors its own copy of click's group class: ask for what it can do, not what it is.
    subcommands: dict[str, click.Command] = getattr(command, "commands", {})
    if not subcommands:
        parts.append(f"\n### `{path}`\n\n{_help_text(command)}\n")
        rows = [
            (f"`{'`, `'.join(option.opts)}`", _option_help(option))
            for option in command.params
            if option.name not in ("help", "install_completion", "show_completion")
        ]
        if rows:
            parts.append("\n" + _table(("option", "meaning"), rows))
    for name in sorted(subcommands):
        parts += _walk(subcommands[name], f"{path} {name}")
    return parts


def _help_text(command: click.Command) -> str:
    return (command.help or "").replace("\b\n", "").strip()


def _option_help(option: Any) -> str:
    return str(getattr(option, "help", None) or "")


def commands() -> str:
    """Write the reference of all commands."""
    parts = [GENERATED, "# Commands\n"]
    for name, app in COMMANDS.items():
        command = typer.main.get_command(app)
        about = "\n\n".join(filter(None, (_help_text(command), command.epilog)))
        parts.append(f"\n## {name}\n\n{about}\n")
        parts += _walk(command, name)
    return "".join(parts)


def _label_text(label: Label) -> str:
    if label.values:
        return f"`{label.name}`: " + ", ".join(f"`{value}`" for value in label.values)
    made = "one" if label.most == 1 else f"at most {label.most}"
    return f"`{label.name}`: {made}, from {label.origin}"


def metrics() -> str:
    """Write the catalogue of metrics."""
    parts = [GENERATED, METRICS_HEAD]
    for service, specs in CATALOGUE.items():
        parts.append(f"\n## {service.title()}\n\n")
        rows = [
            (
                f"`{spec.name}`",
                spec.kind,
                spec.help,
                "; ".join(_label_text(label) for label in spec.labels) or "-",
            )
            for spec in specs
        ]
        parts.append(_table(("metric", "type", "meaning", "labels and all their values"), rows))
    return "".join(parts)


def monitoring() -> str:
    """How to watch the services; the table of alerts is the rules file's."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rows = []
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        texts = rule["annotations"]
        # The figures of a firing alert stand in for $value and $labels here.
        meaning = re.sub(r"\{\{[^}]*\}\}", "…", texts["description"])
        rows.append(
            (
                f"`{rule['alert']}`",
                rule["labels"]["severity"],
                rule.get("for", "at once"),
                meaning,
                f"`{texts['runbook']}`",
            )
        )
    table = _table(("alert", "severity", "after", "what it says", "runbook"), rows)
    return GENERATED + MONITORING_HEAD + table + MONITORING_TAIL


def _bodies(route: Route[Any]) -> tuple[str, str]:
    body = "-" if route.body is None else f"`{route.body.__name__}`"
    answer = "WebSocket" if route.websocket else route.media_type or "-"
    if route.answer is not None:
        answer = f"{route.status} `{route.answer.__name__}`"
        answer += ", or WebSocket" if route.websocket else ""
    return f"{body}, or none" if route.body_optional else body, answer


def http() -> str:
    """Write the calls of gateway and master."""
    head = HTTP_HEAD.replace("BODY_ERRORS", ", ".join(f"`{code}`" for code in BODY_ERRORS))
    parts = [GENERATED, head]
    for service, routes in (("Gateway", GATEWAY_ROUTES), ("Master", MASTER_ROUTES)):
        rows = [
            (
                f"`{route.method} {route.shown_path}`"
                + "".join(f" `?{name}`" for name in route.query),
                " or ".join(CALLERS.get(kind, kind) for kind in route.callers),
                *_bodies(route),
                ", ".join(f"`{code}`" for code in route.errors) or "-",
                route.sentence + (" *Open in a lockdown.*" if route.in_lockdown else ""),
            )
            for route in routes
        ]
        parts.append(f"\n## {service}\n\n")
        columns = ("call", "who may call", "body", "answer", "codes of its own", "what it does")
        parts.append(_table(columns, rows))
    codes = [(f"`{code}`", str(code.status), code.next_step) for code in sorted(ErrorCode)]
    parts.append("\n## Error codes\n\nERROR messages of `/ws` use them too.\n\n")
    parts.append(_table(("code", "status", "what to do next"), codes))
    return "".join(parts)


PAGES = {
    "http.md": http,
    "configuration.md": configuration,
    "commands.md": commands,
    "metrics.md": metrics,
    "monitoring.md": monitoring,
}


def render(directory: Path) -> None:
    """Write every page into `directory`."""
    for name, page in PAGES.items():
        (directory / name).write_text(page())


if __name__ == "__main__":
    render(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
