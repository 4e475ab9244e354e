"""Every call of the master: the one table behind its routes, docs/http.md and /openapi.json."""

from typing import Final

from wavry_cp.app.openapi import with_document
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.operators.audit_routes import AUDIT_ROUTES
from wavry_cp.operators.ban_routes import BAN_ROUTES
from wavry_cp.operators.switch_routes import switch_routes
from wavry_cp.operators.switches import Switch

from .blocks.routes import BLOCK_ROUTES
from .enrolment.registration_routes import REGISTRATION_ROUTES
from .enrolment.routes import ENROLMENT_ROUTES
from .health.routes import HEALTH_ROUTES
from .keys.routes import KEY_ROUTES
from .leases.admin_routes import LEASE_ADMIN_ROUTES
from .leases.routes import LEASE_ROUTES
from .master import Master
from .ops_routes import OPS_ROUTES
from .relays.event_routes import EVENT_ROUTES
from .relays.routes import RELAY_ROUTES
from .revocations.routes import REVOCATION_ROUTES
from .token_routes import TOKEN_ROUTES

__all__ = ["ROUTES"]

ROUTES: Final[tuple[Route[Master], ...]] = with_document(
    "Wavry master",
    (
        *EVENT_ROUTES,  # before /v1/relays/{relay_id}
        *REGISTRATION_ROUTES,
        *RELAY_ROUTES,
        *HEALTH_ROUTES,
        *ENROLMENT_ROUTES,
        *LEASE_ROUTES,
        *LEASE_ADMIN_ROUTES,
        *REVOCATION_ROUTES,
        *OPS_ROUTES,
        *TOKEN_ROUTES,
        *switch_routes({Switch.RELAY_MODE: CallerKind.OPERATOR, Switch.LOCKDOWN: CallerKind.ADMIN}),
        *BAN_ROUTES,
        *AUDIT_ROUTES,
        *KEY_ROUTES,
        *BLOCK_ROUTES,
    ),
)
