"""Every call of the gateway: the one table behind its routes, docs/http.md and /openapi.json."""

from typing import Final

from wavry_cp.app.openapi import with_document
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.operators.audit_routes import AUDIT_ROUTES
from wavry_cp.operators.ban_routes import BAN_ROUTES
from wavry_cp.operators.switch_routes import switch_routes
from wavry_cp.operators.switches import Switch

from .accounts.routes import ACCOUNT_ROUTES
from .accounts.user_routes import USER_ROUTES
from .gateway import Gateway
from .ops_routes import OPS_ROUTES
from .sessions.admin_routes import SESSION_ADMIN_ROUTES
from .sessions.routes import SESSION_ROUTES
from .signaling.routes import SIGNALING_ROUTES

__all__ = ["ROUTES"]

ROUTES: Final[tuple[Route[Gateway], ...]] = with_document(
    "Wavry gateway",
    (
        *ACCOUNT_ROUTES,
        *SIGNALING_ROUTES,
        *SESSION_ROUTES,
        *SESSION_ADMIN_ROUTES,
        *OPS_ROUTES,
        *USER_ROUTES,
        *switch_routes({Switch.LOCKDOWN: CallerKind.ADMIN}),
        *BAN_ROUTES,
        *AUDIT_ROUTES,
    ),
)
