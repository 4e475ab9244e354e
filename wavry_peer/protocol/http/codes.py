"""Every error code of the two services: its HTTP status and what to do next.

A code is the stable part of a refusal.  The message beside it may say more, and changes.
"""

from enum import StrEnum
from typing import Final, Self

__all__ = ["ERROR_HEADER", "ErrorCode"]

ERROR_HEADER: Final = "X-Wavry-Error"
"""Names the code of a refusal beside its body."""


class ErrorCode(StrEnum):
    """A code of an error body or of an ERROR message of the WebSocket.

    Attributes:
        status: of the HTTP answer; where only the WebSocket says it, what HTTP would answer.
        next_step: for the caller.
    """

    status: int
    next_step: str

    def __new__(cls, value: str, status: int, next_step: str) -> Self:
        """Make a member: its value, its status, its next step."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.status = status
        member.next_step = next_step
        return member

    # -- The request itself
    BAD_REQUEST = "bad_request", 400, "Send valid HTTP."
    BODY_TOO_LARGE = "body_too_large", 413, "Send a body of at most 64 KiB."
    EXPECTATION_FAILED = "expectation_failed", 417, "Send no other expectation than 100-continue."
    FRAME_TOO_LARGE = "frame_too_large", 413, "Send frames of at most 64 KiB."
    INVALID_BODY = "invalid_body", 400, "Correct the field that the message names."
    INVALID_FRAME = "invalid_frame", 400, "Correct the field that the message names."
    INVALID_JSON = "invalid_json", 400, "Send valid JSON."
    INVALID_MESSAGE = "invalid_message", 400, "Correct the field that the message names."
    INVALID_QUERY = "invalid_query", 400, "Correct the parameter that the message names."
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "Use a method of the header Allow."
    NOT_FOUND = "not_found", 404, "Check the path and the version of the service."
    REQUEST_TIMEOUT = "request_timeout", 408, "Send the body faster, or again."
    UNSUPPORTED_ENCODING = "unsupported_encoding", 415, "Send the body without Content-Encoding."
    WEBSOCKET_REQUIRED = "websocket_required", 400, "Open this path as a WebSocket."

    # -- The service
    ADMIN_CHECK_UNAVAILABLE = (
        "admin_check_unavailable", 503, "Try again, or use the gateway's own admin token.",
    )  # fmt: skip
    ADMIN_DISABLED = "admin_disabled", 403, "Set an admin token file at the service."
    BUSY = "busy", 503, "Try again after Retry-After."
    INTERNAL_ERROR = "internal_error", 500, "Quote the request id to the operator."
    LOCKDOWN = "lockdown", 503, "Wait until the operator opens the service."
    RATE_LIMITED = "rate_limited", 429, "Wait for Retry-After."
    SHUTTING_DOWN = "shutting_down", 503, "Connect again."
    STORE_UNAVAILABLE = "store_unavailable", 503, "Try again; the operator looks into the log."

    # -- Who asks
    BANNED = "banned", 403, "Ask the operator."
    BIND_REQUIRED = "bind_required", 401, "Send BIND first."
    BIND_TIMEOUT = "bind_timeout", 401, "Connect again and send BIND at once."
    DISPLACED = "displaced", 409, "Nothing: a newer connection of this user took over."
    FORBIDDEN = "forbidden", 403, "Use a token with the role that the message names."
    INVALID_CREDENTIALS = "invalid_credentials", 401, "Check user name and password."
    INVALID_RESET = "invalid_reset", 401, "Ask the operator for a new reset."
    INVALID_TOKEN = "invalid_token", 401, "Log in again."
    ORIGIN_NOT_ALLOWED = "origin_not_allowed", 403, "Ask the operator to allow this origin."
    TOO_MANY_ATTEMPTS = "too_many_attempts", 429, "Wait for Retry-After before the next password."
    TOO_MANY_CONNECTIONS = "too_many_connections", 429, "Close a connection of this address."
    UNAUTHORIZED = "unauthorized", 401, "Send a valid bearer token."
    UNKNOWN_LOGIN = "unknown_login", 404, "Look at the logins: `wavry-peer logins list`."
    USERNAME_TAKEN = "username_taken", 409, "Choose another name."

    # -- Calls of users
    IDENTITY_KEY_REQUIRED = (
        "identity_key_required", 409, "Make a new call; both users must bring an identity_key.",
    )  # fmt: skip
    INVALID_TARGET = "invalid_target", 400, "Call another user than yourself."
    KEY_MISMATCH = "key_mismatch", 409, "Use the keys given first, or begin anew."
    NOT_ACCEPTED = "not_accepted", 409, "Wait for ANSWER."
    NOT_CALLED_USER = "not_called_user", 403, "Leave this to the called user."
    NOT_ON_RELAY = "not_on_relay", 409, "Ask for a relay first."
    SESSION_CLOSED = "session_closed", 409, "Make a new call."
    UNKNOWN_SESSION = "unknown_session", 404, "Make a new call."
    USER_OFFLINE = "user_offline", 404, "Call again when the user is online."

    # -- Leases
    BUSY_SESSION = "busy_session", 409, "Try again."
    INVALID_CNF = "invalid_cnf", 400, "Give the key as base64url of 32 bytes."
    INVALID_SESSION = "invalid_session", 400, "Give another id than the nil UUID."
    LEASE_EXPIRED = "lease_expired", 409, "Ask for new leases."
    LEASE_TOO_LARGE = "lease_too_large", 400, "Use a shorter name."
    NO_RELAY_AVAILABLE = "no_relay_available", 503, "Try again after Retry-After."
    RELAY_GONE = "relay_gone", 409, "Ask for another relay."
    RELAY_LACKS_KEY = "relay_lacks_key", 503, "Try again after Retry-After."
    RELAY_MODE_OFF = "relay_mode_off", 503, "Wait until the operator switches relays on."
    RELAY_UNAVAILABLE = "relay_unavailable", 503, "Try again, or ask for another relay."
    REVOKED = "revoked", 409, "Make a new call, or ask the operator."
    SAME_PARTY = "same_party", 400, "Name two different users."
    SESSION_CONFLICT = "session_conflict", 409, "Use another session id."
    STALE_JTI = "stale_jti", 409, "Use the newest lease."

    # -- Relays
    AMBIGUOUS_RELAY = "ambiguous_relay", 409, "Write more of the id, or the name."
    ENDPOINT_TAKEN = (
        "endpoint_taken", 409,
        "Advertise the relay's own address; `wavryctl relays remove` frees that of an old relay.",
    )  # fmt: skip
    ENROLMENT_TOKEN_INVALID = (
        "enrolment_token_invalid", 403,
        "Make a new token: `wavryctl relays enrol`, and give it to the relay.",
    )  # fmt: skip
    INVALID_ENDPOINT = "invalid_endpoint", 400, "Correct the relay's public endpoints."
    INVALID_PUBLIC_KEY = "invalid_public_key", 400, "Send the relay's Ed25519 key as base64url."
    INVALID_RELAY_ID = "invalid_relay_id", 400, "Derive the id from the public key."
    INVALID_RELAY_TOKEN = "invalid_relay_token", 401, "Register again."
    INVALID_SIGNATURE = "invalid_signature", 401, "Sign the challenge with the relay's key."
    RELAY_NOT_ENROLLED = (
        "relay_not_enrolled", 403,
        "Give the relay a token of `wavryctl relays enrol` (WAVRY_RELAY_ENROLMENT_TOKEN_FILE).",
    )  # fmt: skip
    TOO_MANY_ENROLMENTS = "too_many_enrolments", 409, "Reject tokens that nobody will use."
    TOO_MANY_STRANGERS = (
        "too_many_strangers", 403, "Ask the operator for a token of `wavryctl relays enrol`.",
    )  # fmt: skip
    UNKNOWN_CHALLENGE = "unknown_challenge", 404, "Register again."
    UNKNOWN_RELAY = "unknown_relay", 404, "Register the relay, or check its id."
    WRONG_REGION = (
        "wrong_region", 409, "Set WAVRY_RELAY_REGION to the region of the enrolment, or leave it.",
    )  # fmt: skip
    WRONG_STATE = "wrong_state", 409, "Look at the relay's state: `wavryctl relays list`."

    # -- Keys
    INVALID_DOCUMENT = "invalid_document", 400, "Sign the document of a new plan."
    KEYS_NOT_WRITTEN = "keys_not_written", 503, "Look into the master's log."
    LEASES_RUNNING = "leases_running", 409, "Wait until the leases of this key have ended."
    NO_SUCCESSOR = "no_successor", 409, "Create a successor first."
    NOTHING_TO_ROLL_BACK = "nothing_to_roll_back", 409, "Rotate to a new key instead."
    PENDING_EXISTS = "pending_exists", 409, "Activate the pending key or roll it back."
    PLAN_CHANGED = "plan_changed", 409, "Ask for the plan again."
    PRIVATE_KEY_MISSING = "private_key_missing", 409, "Bring the private half to the master."
    RELAYS_LACK_KEY = "relays_lack_key", 409, "Wait for the relays that the message names."
    ROOT_KEY_HERE = "root_key_here", 409, "Send no document: the master signs itself."
    STALE_ROOT = "stale_root", 409, "Ask for the plan again."
    TOO_MANY_KEYS = "too_many_keys", 409, "Remove old keys."
    UNKNOWN_KEY = "unknown_key", 404, "Look at the ids: `wavryctl keys list`."
    WRONG_KEY_STATUS = "wrong_key_status", 409, "Look at the keys: `wavryctl keys status`."

    # -- Operators
    INVALID_SUBNET = "invalid_subnet", 400, "Write it like 192.0.2.7/32."
    NAME_TAKEN = "name_taken", 409, "Choose another name, or free this one."
    NOT_BANNED_HERE = "not_banned_here", 400, "Ask the other service."
    RESERVED_NAME = "reserved_name", 400, "Choose another name."
    TOO_MANY_BANS = "too_many_bans", 409, "Lift some bans."
    TOO_MANY_ORDERS = "too_many_orders", 409, "Lift all blocks at once."
    TOO_MANY_REVOCATIONS = "too_many_revocations", 503, "Revoke users or a key instead."
    TOO_MANY_TOKENS = "too_many_tokens", 409, "Revoke some tokens."
    UNKNOWN_BAN = "unknown_ban", 404, "Look at the bans: `wavryctl bans list`."
    UNKNOWN_SWITCH = "unknown_switch", 404, "Use a switch that the message names."
    UNKNOWN_TOKEN = "unknown_token", 404, "Look at the tokens: `wavryctl tokens list`."
    UNKNOWN_USER = "unknown_user", 404, "Look at the accounts: `wavryctl users list`."
