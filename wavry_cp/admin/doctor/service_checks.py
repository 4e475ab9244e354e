"""Gateway and master: do they answer, are they ready, do they get on with each other."""

from typing import Final

from wavry_peer.protocol.http.ops import GatewayReady, ServiceHealth, ServiceReady

from .facts import ServiceFacts, SystemFacts
from .finding import GATEWAY, HERE, MASTER, NETWORK, Finding, Layer

__all__ = ["MASTER_DOWN", "check_gateway", "check_master", "check_master_link", "check_token"]

MASTER_DOWN: Final = "master: reachable"
_OPTIONS: Final = {
    "gateway": ("--gateway-url", "WAVRY_GATEWAY_URL"),
    "master": ("--master-url", "WAVRY_MASTER_URL"),
}


def check_master(facts: SystemFacts) -> list[Finding]:
    """Check that the master answers and is ready."""
    found = _reachable("master", MASTER, facts.master)
    seen = facts.gateway.ready.read(GatewayReady, 200, 503)
    if found.unreachable and seen is not None and seen.master == "ok":
        return [
            Finding(
                layer=NETWORK,
                check="reachable",
                subject="master",
                verdict="fail",
                evidence=f"from here: {facts.master.health.text}; but the gateway reaches it",
                next_step=f"check the address {facts.master.url}, and what filters between this "
                "machine and the master",
                unreachable=True,
            )
        ]
    return [found]


def check_gateway(facts: SystemFacts) -> list[Finding]:
    """Check that the gateway answers and is ready."""
    return [_reachable("gateway", GATEWAY, facts.gateway)]


def _reachable(name: str, layer: Layer, service: ServiceFacts) -> Finding:
    def finding(
        verdict: str, evidence: str, next_step: str = "", *, unreachable: bool = False
    ) -> Finding:
        return Finding(
            layer=layer,
            check="reachable",
            subject=name,
            verdict=verdict,  # type: ignore[arg-type]  # one of the four, below
            evidence=evidence,
            next_step=next_step,
            unreachable=unreachable,
        )

    if service.url is None:
        option, variable = _OPTIONS[name]
        return finding("unknown", "no address of it is known", f"give {option} or {variable}")
    if not service.is_reached:
        return finding(
            "fail",
            f"{service.url}: {service.health.text}",
            f"look at the end of the {name}'s log on its host and start it; if it runs, check the "
            "address and what filters in between",
            unreachable=True,
        )
    health = service.health.read(ServiceHealth)
    if service.health.status != 200 or health is None:
        return finding(
            "fail",
            f"{service.url} answers /health with status {service.health.status}, as no {name} does",
            f"is this address really the {name}, and is the proxy before it well?",
        )
    ready = service.ready.read(ServiceReady, 200, 503)
    if ready is None or not ready.ready:
        reason = service.ready.text if ready is None else ready.reason
        return finding(
            "fail", f"it is not ready: {reason}", f"look for the reason in the {name}'s log"
        )
    if ready.warning:
        return finding(
            "warn",
            f"data were lost: {ready.warning}",
            f"stop the {name} and `wavryctl restore` its last backup, or accept this database: its"
            " log names the file to remove",
        )
    if health.tls == "stale":
        return finding(
            "warn",
            "answers and is ready, but with an old certificate: the new files do not fit",
            f"tls_files_refused in the {name}'s log says why; write both files again before the"
            " old certificate ends",
        )
    return finding("ok", "answers and is ready")


def check_master_link(facts: SystemFacts) -> list[Finding]:
    """Check that the gateway reaches the master, and that the master takes its calls."""
    ready = facts.gateway.ready.read(GatewayReady, 200, 503)
    if ready is None:
        return []
    told = facts.gateway_status
    cause = told.master_error if told else ""
    if ready.master == "ok" and not cause:
        return [_link("ok", GATEWAY, "the gateway reaches the master")]
    if ready.master == "ok":
        refused = "401" in cause or "403" in cause
        return [
            _link(
                "fail" if refused else "warn",
                GATEWAY,
                f"the master is up, but the gateway's last call failed: {cause}",
                "compare WAVRY_GATEWAY_SERVICE_TOKEN_FILE with the master's service token"
                if refused
                else "look for master_call_failed in the gateway's log",
            )
        ]
    evidence = "the gateway does not reach the master" + (f" ({cause})" if cause else "")
    if facts.master.url is not None and not facts.master.is_reached:
        return [
            _link("fail", NETWORK, f"{evidence}; nor do we", "repair the master first", MASTER_DOWN)
        ]
    where = told.master_url if told and told.master_url else "WAVRY_GATEWAY_MASTER_URL"
    seen = "; from here the master answers" if facts.master.is_reached else ""
    return [
        _link(
            "fail",
            NETWORK,
            evidence + seen,
            f"on the gateway's host try `curl -v {where}/health`; check WAVRY_GATEWAY_MASTER_URL "
            "and what filters between gateway and master",
        )
    ]


def _link(
    verdict: str, layer: Layer, evidence: str, next_step: str = "", consequence_of: str = ""
) -> Finding:
    return Finding(
        layer=layer,
        check="master link",
        subject="gateway",
        verdict=verdict,  # type: ignore[arg-type]  # one of the four, above
        evidence=evidence,
        next_step=next_step,
        consequence_of=consequence_of,
    )


def check_token(facts: SystemFacts) -> list[Finding]:
    """Return whether what operators are told was told."""
    if facts.token == "given":
        return []
    given = facts.token != "none"
    return [
        Finding(
            layer=HERE,
            check="admin token",
            subject="-",
            verdict="fail" if given else "unknown",
            evidence=facts.token
            if given
            else "none was given: the master's list of relays, the rotation of keys, revocations "
            "and who ordered what were not looked at",
            next_step="give one that is good: tokens end, are rotated and revoked"
            if given
            else "set WAVRY_ADMIN_TOKEN_FILE; the role viewer is enough",
        )
    ]
