"""Accounts: register, refuse a wrong password, log in, use the log-in, log out."""

import secrets
import uuid

from wavry_peer.errors import GatewayAuthError, GatewayError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.protocol.http.codes import ErrorCode

from .report import Passed, StepFailedError
from .stage import SmokeContext

__all__ = ["check_auth"]


async def check_auth(stage: SmokeContext) -> Passed:
    """Take the step.

    Raises:
        StepFailedError: the gateway lets pass what it should refuse, or the other way round.
        GatewayError, GatewayUnreachableError: a call failed.
    """
    await stage.register()
    account = stage.accounts[0]
    async with GatewayClient(stage.gateway_url) as gateway:
        stage.doing = "registering a name that is taken"
        try:
            await gateway.register(account.username, secrets.token_urlsafe(24))
        except GatewayError as error:
            if error.code != ErrorCode.USERNAME_TAKEN:
                raise
        else:
            raise StepFailedError("a name that is taken was registered again")

        stage.doing = "logging in with a wrong password"
        try:
            await gateway.login(account.username, secrets.token_urlsafe(24))
        except GatewayAuthError:
            pass
        else:
            raise StepFailedError("a wrong password was accepted")

        stage.doing = "logging in"
        await gateway.login(account.username, account.password)
        if not await _token_is_good(gateway):
            raise StepFailedError("a token that was just given is refused")
        stage.doing = "logging out"
        await gateway.logout()
        if await _token_is_good(gateway):
            raise StepFailedError("a token is still good after its log-out")
    made = f"{stage.registered} accounts registered" if stage.registered else "accounts were there"
    return Passed(f"{made}; logged in and out; wrong password, taken name and dead token refused")


async def _token_is_good(gateway: GatewayClient) -> bool:
    try:
        await gateway.session_info(str(uuid.uuid4()))
    except GatewayAuthError:
        return False
    except GatewayError as error:
        if error.code == ErrorCode.UNKNOWN_SESSION:
            return True
        raise
    return True
