"""Asks every service, relay and port at the same time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_cp.admin.output import CommandError
from wavry_peer.protocol.http.admin import AuditPage, BanList, SwitchList
from wavry_peer.protocol.http.api import ErrorBody, RelayInfo, RelayList
from wavry_peer.protocol.http.keys import KeysStatus
from wavry_peer.protocol.http.ops import GatewayReady, GatewayStatus, MasterStatus, RelayHealth
from wavry_peer.protocol.http.relay_events import RevocationList
from wavry_peer.protocol.keyset import KeySet
from wavry_peer.protocol.relay_terms import RelayState

from .facts import Counters, RelayFacts, ServiceFacts, SystemFacts
from .reach import Asker, HttpAnswer
from .udp_probe import UdpAnswer, probe_udp

__all__ = ["WATCHED", "Examination", "gather"]

PROBE_FRESH_S: Final = 5.5
"""A gateway's word about the master may be 5 s old."""
HEARTBEAT_S: Final = 5.0
"""How often relays report where the master does not say."""
HEARTBEAT_MOST: Final = 1.2
"""Heartbeats have a jitter of a fifth."""
HEARTBEAT_MARGIN_S: Final = 1.5
"""They are told in whole seconds, and take a moment."""
AUDIT_ROWS: Final = 1000
MAX_UDP_PROBES: Final = 64
"""At once: ten thousand relays must not be a burst from here."""

Kind = TypeVar("Kind")

WATCHED: Final[Mapping[str, Mapping[str, tuple[str, Mapping[str, str]]]]] = {
    "gateway": {"errors": ("wavry_gateway_http_requests_total", {"status": "500"})},
    "master": {"errors": ("wavry_master_http_requests_total", {"status": "500"})},
    "relay": {
        "unknown_key": ("wavry_relay_lease_rejects_total", {"reason": "unknown_key"}),
        "errors": ("wavry_relay_internal_errors_total", {}),
        "restarts": ("wavry_relay_worker_restarts_total", {}),
    },
}
"""Counters by our name: of which metric, with which labels."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What to examine.

    Attributes:
        endpoints: where the services are.
        watch_s: how long counters are watched.
        relay_ops: ops URLs of relays, beside those of a dev system.
    """

    endpoints: ServiceEndpoints
    watch_s: float = 3.0
    relay_ops: tuple[str, ...] = ()

    @property
    def known_ops(self) -> dict[str, str]:
        """Ops URLs by relay id, or by themselves where the id is not known yet."""
        known = {relay.ops_url: relay.relay_id for relay in self.endpoints.relays}
        for url in self.relay_ops:
            known.setdefault(url.rstrip("/"), url.rstrip("/"))
        return {name: url for url, name in known.items()}


def _token_of(endpoints: ServiceEndpoints) -> str | None:
    """Return the admin token, if one was named; nobody is asked for one who did not say so.

    Raises:
        CommandError: a token was named and cannot be used.
    """
    if not (endpoints.ask_token or endpoints.admin_token_text or endpoints.admin_token_file):
        return None
    return endpoints.admin_token() or None


async def gather(examination: Examination) -> SystemFacts:
    """Ask, watch, ask again."""
    token, trouble = None, ""
    try:
        token = _token_of(examination.endpoints)
    except CommandError as error:
        trouble = f"it cannot be used: {error}"
    async with Asker() as asker:
        facts = await _Round(asker, examination, token).facts()
    return replace(facts, token=trouble or facts.token)


_RELAY_ANSWERS: Final = (200, 503)
"""Statuses of a relay's ``/health``: 503 says that no worker runs."""


class _Round:
    """One examination under way."""

    def __init__(self, asker: Asker, examination: Examination, token: str | None) -> None:
        self._asker = asker
        self._gateway_url = examination.endpoints.gateway_url
        self._master_url = examination.endpoints.master_url
        self._ops = examination.known_ops
        self._watch_s = examination.watch_s
        self._token = token

    async def facts(self) -> SystemFacts:
        gateway, master, ops, first = await asyncio.gather(
            self._service(self._gateway_url),
            self._service(self._master_url),
            self._ask_ops(),
            self._counters(),
        )
        told = await self._admin(gateway, master)
        relays = _join(told["relays"], self._ops, ops)
        probed, _ = await asyncio.gather(self._probe(relays), asyncio.sleep(self._watch_s))
        last = await self._counters()
        master_status = _read(told["master_status"], MasterStatus)
        interval_s = master_status.heartbeat_interval_ms / 1000 if master_status else HEARTBEAT_S
        probed = await self._heard_again(probed, interval_s)
        gateway = await self._again_if_in_doubt(gateway, master)
        # Behind /ready, so that both are about the same moment.
        status = await self._gateway_status(gateway)
        return SystemFacts(
            gateway=replace(gateway, counters=(first["gateway"], last["gateway"])),
            master=replace(master, counters=(first["master"], last["master"])),
            relays=tuple(
                replace(
                    relay, counters=(first.get(relay.ops_url or ""), last.get(relay.ops_url or ""))
                )
                for relay in probed
            ),
            token=self._token_state(told["relays"]),
            gateway_status=status,
            listed=_read(told["relays"], RelayList),
            keys=_read(told["keys"], KeysStatus),
            document=_read(told["document"], KeySet),
            revocations=_read(told["revocations"], RevocationList),
            switches={
                service: found
                for service in ("gateway", "master")
                if (found := _read(told[f"{service}_switches"], SwitchList)) is not None
            },
            audit=_read(told["audit"], AuditPage),
            bans=_read(told["bans"], BanList),
            interval_s=interval_s,
            watch_s=self._watch_s,
        )

    # -- Services --------------------------------------------------------------------------

    async def _get(self, url: str, path: str) -> HttpAnswer:
        return await self._asker.get(url, path, self._token)

    async def _service(self, url: str | None) -> ServiceFacts:
        if url is None:
            return ServiceFacts(None)
        health, ready = await asyncio.gather(
            self._asker.get(url, "/health"), self._asker.get(url, "/ready")
        )
        return ServiceFacts(url, health, ready)

    async def _admin(
        self, gateway: ServiceFacts, master: ServiceFacts
    ) -> dict[str, HttpAnswer | None]:
        """Return what only operators are told, and the key set; None where nobody was asked."""
        questions = {
            "relays": (master, "/v1/relays"),
            "keys": (master, "/v1/admin/keys/status"),
            "revocations": (master, "/v1/admin/revocations"),
            "master_status": (master, "/v1/admin/status"),
            "master_switches": (master, "/v1/admin/switches"),
            "audit": (master, f"/v1/admin/audit?only=acts&limit={AUDIT_ROWS}"),
            "bans": (master, "/v1/admin/bans"),
            "gateway_switches": (gateway, "/v1/admin/switches"),
            "document": (master, "/.well-known/wavry-keys.json"),
        }

        async def ask(name: str, service: ServiceFacts, path: str) -> HttpAnswer | None:
            if service.url is None or not service.is_reached:
                return None
            if self._token is None and name != "document":
                return None
            return await self._get(service.url, path)

        answers = await asyncio.gather(
            *(ask(name, service, path) for name, (service, path) in questions.items())
        )
        return dict(zip(questions, answers, strict=True))

    async def _gateway_status(self, gateway: ServiceFacts) -> GatewayStatus | None:
        if self._token is None or gateway.url is None or not gateway.is_reached:
            return None
        return (await self._get(gateway.url, "/v1/admin/status")).read(GatewayStatus)

    async def _again_if_in_doubt(self, gateway: ServiceFacts, master: ServiceFacts) -> ServiceFacts:
        """Ask a gateway again whose word about the master differs from what we see."""
        seen = gateway.ready.read(GatewayReady, 200, 503)
        if seen is None or gateway.url is None or master.url is None:
            return gateway
        if (seen.master == "ok") == master.is_reached:
            return gateway
        await asyncio.sleep(PROBE_FRESH_S)
        return replace(gateway, ready=await self._asker.get(gateway.url, "/ready"))

    def _token_state(self, answer: HttpAnswer | None) -> str:
        if self._token is None:
            return "none"
        if answer is not None and answer.status in (401, 403):
            error = answer.read(ErrorBody, 401, 403)
            told = error.message if error else f"status {answer.status}"
            return f"the master refuses it: {told}"
        return "given"

    # -- Relays ----------------------------------------------------------------------------

    async def _ask_ops(self) -> dict[str, HttpAnswer]:
        answers = await asyncio.gather(
            *(self._asker.get(url, "/health") for url in self._ops.values())
        )
        return dict(zip(self._ops.values(), answers, strict=True))

    async def _probe(self, relays: list[RelayFacts]) -> list[RelayFacts]:
        limit = asyncio.Semaphore(MAX_UDP_PROBES)

        async def one(endpoint: str) -> UdpAnswer:
            async with limit:
                return await probe_udp(endpoint)

        async def all_of(relay: RelayFacts) -> RelayFacts:
            listening = relay.health.udp if relay.health else ()
            endpoints = relay.row.endpoints if relay.row else listening
            answers = await asyncio.gather(*(one(endpoint) for endpoint in endpoints))
            return replace(relay, udp=tuple(answers))

        return list(await asyncio.gather(*(all_of(relay) for relay in relays)))

    async def _heard_again(self, relays: list[RelayFacts], interval_s: float) -> list[RelayFacts]:
        """Look whether relays that give us no sign of life give one to the master."""
        doubted = [
            relay
            for relay in relays
            if relay.row is not None
            and relay.row.state not in (RelayState.OFFLINE, RelayState.BANNED)
            and relay.udp_reach != "ok"
            and not (relay.ops is not None and relay.ops.is_reached)
        ]
        if not doubted or self._master_url is None:
            return relays
        await asyncio.sleep(HEARTBEAT_MOST * interval_s + HEARTBEAT_MARGIN_S)
        answer = (await self._get(self._master_url, "/v1/relays")).read(RelayList)
        rows = {} if answer is None else {row.relay_id: row for row in answer.relays}
        return [
            replace(
                relay,
                row=rows.get(relay.name, relay.row),
                missed_heartbeat=_has_missed(relay.row, rows.get(relay.name)),
            )
            if relay in doubted
            else relay
            for relay in relays
        ]

    # -- Counters --------------------------------------------------------------------------

    async def _counters(self) -> dict[str, Counters | None]:
        """Return the counters of gateway and master by name, of relays by ops URL."""
        asked = [
            ("gateway", "gateway", self._gateway_url),
            ("master", "master", self._master_url),
            *(("relay", url, url) for url in self._ops.values()),
        ]

        async def one(role: str, url: str | None) -> Counters | None:
            if url is None:
                return None
            # A relay's ops port is no place for the admin token.
            token = None if role == "relay" else self._token
            answer = await self._asker.get(url, "/metrics", token)
            return _read_counters(role, answer)

        found = await asyncio.gather(*(one(role, url) for role, _, url in asked))
        return {name: counters for (_, name, _), counters in zip(asked, found, strict=True)}


def _read(answer: HttpAnswer | None, kind: type[Kind]) -> Kind | None:
    return None if answer is None else answer.read(kind)


def _read_counters(role: str, answer: HttpAnswer) -> Counters | None:
    if not answer.is_reached or answer.status != 200:
        return None
    try:
        families = list(text_string_to_metric_families(answer.raw.decode()))
    except ValueError:
        return None
    samples = [sample for family in families for sample in family.samples]
    return {
        name: sum(
            sample.value
            for sample in samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        )
        for name, (metric, labels) in WATCHED[role].items()
    }


def _join(
    listed: HttpAnswer | None, known: Mapping[str, str], answers: Mapping[str, HttpAnswer]
) -> list[RelayFacts]:
    """Return one entry for each relay that the master lists or whose ops URL is known."""
    answer = None if listed is None else listed.read(RelayList)
    rows: dict[str, RelayInfo] = (
        {} if answer is None else {row.relay_id: row for row in answer.relays}
    )
    named: dict[str, str] = {}
    for name, url in known.items():
        health = answers[url].read(RelayHealth, *_RELAY_ANSWERS)
        named[url] = health.relay_id if health and health.relay_id else name
    _name_by_host(named, rows)
    relays = [
        RelayFacts(
            name, rows.get(name), url, answers[url], answers[url].read(RelayHealth, *_RELAY_ANSWERS)
        )
        for url, name in named.items()
    ]
    known_ids = set(named.values())
    relays += [RelayFacts(key, row) for key, row in rows.items() if key not in known_ids]
    return sorted(relays, key=lambda relay: relay.name)


def _name_by_host(named: dict[str, str], rows: Mapping[str, RelayInfo]) -> None:
    """Give an ops URL that did not answer the id of the one relay whose endpoints are its host."""
    nameless = [url for url, name in named.items() if name == url]
    taken = set(named.values())
    for url in nameless:
        host = URL(url).host
        here = [other for other in nameless if URL(other).host == host]
        there = [
            key
            for key, row in rows.items()
            if key not in taken and host in {_host_of(text) for text in row.endpoints}
        ]
        if len(here) == len(there) == 1:
            named[url] = there[0]


def _host_of(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def _has_missed(before: RelayInfo | None, after: RelayInfo | None) -> bool:
    if before is None or after is None:
        return False
    return after.last_heartbeat_at <= before.last_heartbeat_at
