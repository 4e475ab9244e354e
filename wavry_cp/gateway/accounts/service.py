"""Accounts: register, log in, log out, and who a token belongs to."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from wavry_cp.app.metric_families import LabelledCounter
from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.core import GatewayCore
from wavry_peer.protocol.http.codes import ErrorCode

from .fair_queue import Party, login_network
from .login_delays import LoginDelays
from .passwords import PasswordHasher
from .store import AccountStore, NewLogin, TokenOwner
from .tokens import make_token, token_hash

__all__ = ["AccountService", "Login", "Via"]

NETWORK_FACTOR: Final = 8
"""Logins of an IPv6 /48, as a multiple of those of an address: a house has several /64."""
Via = Literal["http", "websocket"]
LOGIN_ID_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class Login:
    """A new token; `expires_at` in unix seconds."""

    token: str
    expires_at: int


class AccountService:
    """What /auth and BIND ask for."""

    def __init__(
        self,
        core: GatewayCore,
        hasher: PasswordHasher,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        config = core.config
        self._config = config
        self._store: AccountStore = core.store
        self._hub = core.hub
        self._access = core.access
        self._clock = core.clock
        self._metrics = core.metrics
        self._hasher = hasher
        self._random_bytes = random_bytes
        self._delays = LoginDelays(secret=random_bytes(32))
        self._register_limit = RateLimiter.per_minute(
            config.register_per_minute, config.register_burst
        )
        self._login_limit = RateLimiter.per_minute(config.login_per_minute, config.login_burst)
        self._network_limit = RateLimiter.per_minute(
            NETWORK_FACTOR * config.login_per_minute, NETWORK_FACTOR * config.login_burst
        )

    async def register(self, username: str, password: str, address: str) -> None:
        """Make an account; `address` is the limiter's key of the client.

        Raises:
            RefusedError: ``rate_limited``, ``username_taken`` or ``busy``.
        """
        self._check(self._register_limit, "register", address, self._metrics.registrations)
        # Hashed before the name is looked at: the answer's time does not tell who exists.
        try:
            hashed = await self._hasher.hash(password, Party.of(username, address))
        except RefusedError:
            self._metrics.registrations.labels("busy").inc()
            raise
        if not await self._store.add_user(username, hashed, now_s=self._clock.now_s()):
            self._metrics.registrations.labels("taken").inc()
            raise RefusedError(ErrorCode.USERNAME_TAKEN, "this name is taken; choose another")
        self._metrics.registrations.labels("ok").inc()

    async def login(
        self, username: str, password: str, address: str, *, temporary: bool = False
    ) -> Login:
        """Check a password and make a token.

        Args:
            username: as given.
            password: as given.
            address: the limiter's key of the client.
            temporary: of one run of a program: it takes no place of the user's other logins.

        Raises:
            RefusedError: as `require_password`.
        """
        stored = await self.require_password(username, password, address)
        if self._hasher.outdated(stored):
            renewed = await self._hasher.hash(password, Party.of(username, address))
            await self._store.set_password_hash(username, renewed, before=stored)
            stored = renewed
        login = await self._new_token(username, stored, temporary=temporary)
        self._metrics.logins.labels("ok").inc()
        return login

    async def require_password(self, username: str, password: str, address: str) -> str:
        """Check a password, for a login or before a change of the account; gives its stored hash.

        Raises:
            RefusedError: ``rate_limited``, ``too_many_attempts``, ``busy``, ``banned``, or for a
                wrong password and an unknown user alike ``invalid_credentials``.
        """
        self._check(self._login_limit, "login", address, self._metrics.logins)
        self._check(self._network_limit, "login", login_network(address), self._metrics.logins)
        wait_s = self._delays.begin(username, address, self._clock.monotonic_s())
        if wait_s:
            self._metrics.logins.labels("delayed").inc()
            raise RefusedError(
                ErrorCode.TOO_MANY_ATTEMPTS,
                "too many wrong passwords from here; wait before the next try",
                retry_after_s=wait_s,
            )
        pause_s = self._delays.pause_s(username, self._clock.monotonic_s())
        if pause_s:
            await asyncio.sleep(pause_s)
        user = await self._store.user(username)
        stored = None if user is None else user.password_hash
        try:
            fits = await self._hasher.verify(password, stored, Party.of(username, address))
        except RefusedError:
            self._delays.take_back(username, address)
            self._metrics.logins.labels("busy").inc()
            raise
        if not fits or stored is None:
            self._metrics.logins.labels("wrong").inc()
            # A name that nobody has may be a password that was typed into the wrong field.
            raise _wrong("an unknown account" if stored is None else username)
        self._delays.succeeded(username, address)
        # Only now: a ban is told to who holds the account, not to who guesses names.
        try:
            self._access.require(username)
        except RefusedError as error:
            self._metrics.logins.labels(error.code).inc()
            raise
        return stored

    async def logout(self, token: str) -> None:
        """End a token and every WebSocket that was opened with it.

        Raises:
            RefusedError: ``invalid_token``.
        """
        hashed = token_hash(token)
        if hashed is None or not await self._store.remove_token(hashed):
            raise _invalid_token()
        self._hub.end_tokens((hashed,))

    async def owner(self, token: str | None, *, via: Via) -> TokenOwner:
        """Return who a bearer token belongs to; `via` is for the counter.

        Raises:
            RefusedError: ``invalid_token``: missing, unknown, expired or logged out; ``banned``.
        """
        hashed = None if token is None else token_hash(token)
        if hashed is None:
            self._metrics.token_checks.labels(
                via, "missing" if token is None else "malformed"
            ).inc()
            raise _invalid_token()
        owner = await self._store.token_owner(hashed, now_s=self._clock.now_s())
        if owner is None:
            self._metrics.token_checks.labels(via, "unknown").inc()
            raise _invalid_token()
        try:
            self._access.require(owner.username)
        except RefusedError as error:
            self._metrics.token_checks.labels(via, error.code).inc()
            raise
        self._metrics.token_checks.labels(via, "ok").inc()
        return owner

    async def _new_token(self, username: str, password_hash: str, *, temporary: bool) -> Login:
        token, hashed = make_token(self._random_bytes)
        now_s = self._clock.now_s()
        expires_at = now_s + self._config.token_ttl_s
        login_id = self._random_bytes(LOGIN_ID_BYTES).hex()
        ended = await self._store.add_token(
            NewLogin(hashed, username, login_id, now_s, expires_at, temporary),
            password_hash=password_hash,
            max_tokens=self._config.tokens_per_user,
        )
        if ended is None:  # Changed or deleted while the password was checked.
            raise _wrong(username)
        self._hub.end_tokens(ended)
        return Login(token, expires_at)

    def check_address(self, address: str) -> None:
        """Count a try of something that is as good as a password.

        Raises:
            RefusedError: ``rate_limited``.
        """
        self._check(self._login_limit, "login", address, self._metrics.logins)

    def _check(
        self, limiter: RateLimiter, name: str, address: str, results: LabelledCounter
    ) -> None:
        wait_s = limiter.check(address, self._clock.monotonic_s())
        if wait_s:
            self._metrics.limited.labels(name).inc()
            results.labels("limited").inc()
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                "too many tries from this address; wait",
                retry_after_s=wait_s,
            )


def _wrong(about: str) -> RefusedError:
    return RefusedError(
        ErrorCode.INVALID_CREDENTIALS, "user name or password is wrong", about=about
    )


def _invalid_token() -> RefusedError:
    return RefusedError(
        ErrorCode.INVALID_TOKEN, "the token is missing or not valid (any more); log in again"
    )
