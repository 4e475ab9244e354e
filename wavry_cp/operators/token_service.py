"""Makes, rotates and revokes named admin tokens: one change at a time, written before believed."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.admin import (
    NewToken,
    NewTokenRequest,
    RotateTokenRequest,
    TokenInfo,
    TokenList,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.clock import Clock

from .admin_tokens import RESERVED_NAMES, AdminToken, TokenTable, new_token, rotation
from .audit import SYSTEM, AuditEntry, attempted
from .roles import AdminRole
from .store import TokenStore

__all__ = ["TokenService"]

MAX_TOKENS: Final = 1000
KEEP_EXPIRED_S: Final = 7 * 86_400
"""Expired tokens are listed for a week, so that their holder finds out why he is refused."""


class TokenService:
    """Answers ``/v1/admin/tokens``."""

    def __init__(
        self,
        store: TokenStore,
        table: TokenTable,
        clock: Clock,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._table = table
        self._clock = clock
        self._random_bytes = random_bytes
        self._changing = asyncio.Lock()

    def listed(self) -> TokenList:
        """Return all tokens, without their secrets."""
        now_s = self._clock.now_s()
        return TokenList(tokens=tuple(_info(token, now_s) for token in self._table.all()))

    async def create(self, request: NewTokenRequest, *, who: str) -> NewToken:
        """Make a token under a name that has none.

        Raises:
            RefusedError: ``reserved_name``, ``name_taken`` or ``too_many_tokens``.
        """
        now_s = self._clock.now_s()
        target = f"{request.name} ({request.role})"
        audit = AuditEntry(now_s, who, "token_create", target, request.reason)
        async with self._changing, attempted(self._store, audit):
            if request.name in RESERVED_NAMES:
                raise RefusedError(
                    ErrorCode.RESERVED_NAME, "this name is the system's; choose another"
                )
            held = self._table.named(request.name)
            if any(token.is_valid(now_s) for token in held):
                raise RefusedError(
                    ErrorCode.NAME_TAKEN, "this name has a valid token; rotate or revoke that one"
                )
            if len(self._table) - len(held) >= MAX_TOKENS:
                raise RefusedError(
                    ErrorCode.TOO_MANY_TOKENS, f"there are {MAX_TOKENS} tokens; revoke some first"
                )
            token, text = new_token(
                request.name,
                AdminRole(request.role),
                now_s=now_s,
                life_s=request.life_s,
                random_bytes=self._random_bytes,
            )
            await self._write((token,), held, audit)
        return NewToken(token=text, info=_info(token, now_s))

    async def rotate(self, name: str, request: RotateTokenRequest, *, who: str) -> NewToken:
        """Make a new token of the same role; the newest so far stays valid for the overlap.

        Raises:
            RefusedError: ``unknown_token``.
        """
        now_s = self._clock.now_s()
        audit = AuditEntry(now_s, who, "token_rotate", name, request.reason)
        async with self._changing, attempted(self._store, audit):
            held = self._held(name)
            newest = held[-1]
            life_s = request.life_s
            if life_s is None and newest.expires_at_s is not None:
                life_s = newest.expires_at_s - newest.created_at_s
            token, text = new_token(
                name, newest.role, now_s=now_s, life_s=life_s, random_bytes=self._random_bytes
            )
            previous, ended = rotation(held, now_s=now_s, overlap_s=request.overlap_s)
            keep = (token,) if previous is None else (previous, token)
            await self._write(keep, ended, audit)
        return NewToken(
            token=text,
            info=_info(token, now_s),
            previous=None if previous is None else _info(previous, now_s),
        )

    async def revoke(self, name: str, *, who: str, reason: str) -> TokenList:
        """End every token of a name at once; they are forgotten, the audit log is not.

        Raises:
            RefusedError: ``unknown_token``.
        """
        now_s = self._clock.now_s()
        audit = AuditEntry(now_s, who, "token_revoke", name, reason)
        async with self._changing, attempted(self._store, audit):
            held = self._held(name)
            await self._write((), held, audit)
        return self.listed()

    async def forget_expired(self) -> None:
        """Forget tokens that expired a week ago."""
        now_s = self._clock.now_s()
        async with self._changing:
            for token in self._table.all():
                if not token.is_valid(now_s - KEEP_EXPIRED_S):
                    audit = AuditEntry(now_s, SYSTEM, "token_forget", token.name, "expired")
                    await self._write((), (token,), audit)

    def _held(self, name: str) -> tuple[AdminToken, ...]:
        held = self._table.named(name)
        if not held:
            raise RefusedError(
                ErrorCode.UNKNOWN_TOKEN, "no token has this name; see `wavryctl tokens list`"
            )
        return held

    async def _write(
        self, keep: tuple[AdminToken, ...], forget: tuple[AdminToken, ...], audit: AuditEntry
    ) -> None:
        await self._store.change_admin_tokens(keep, forget, audit)
        self._table.change(keep, forget)


def _info(token: AdminToken, now_s: int) -> TokenInfo:
    return TokenInfo(
        token_id=token.token_id,
        name=token.name,
        role=token.role.value,
        created_at=token.created_at_s,
        expires_at=token.expires_at_s,
        valid=token.is_valid(now_s),
    )
