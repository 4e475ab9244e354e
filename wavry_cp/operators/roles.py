"""Roles of admin tokens: each may do what the ones before it may."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["SERVICE", "AdminRole", "Caller"]

SERVICE: Final = "service"
"""Name of the caller that shows the service token; no admin token may have it."""


class AdminRole(StrEnum):
    """viewer looks; operator drains, bans and revokes; admin also changes tokens and keys."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, needed: "AdminRole") -> bool:
        """Return whether this role may do what `needed` may."""
        return _RANK[self] >= _RANK[needed]


_RANK: Final = {role: rank for rank, role in enumerate(AdminRole)}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who shows a valid token.

    Attributes:
        name: of the token, for the audit log; ``"admin"`` is the one in the operator's file.
        role: None for the service token, which has no admin role at all.
    """

    name: str
    role: AdminRole | None

    def may(self, needed: str) -> bool:
        """Return whether the caller is `needed`: ``"service"``, or the value of a `AdminRole`."""
        if needed == SERVICE:
            return self.role is None
        return self.role is not None and self.role.includes(AdminRole(needed))
