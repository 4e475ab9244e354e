"""Accounts, logins and password resets in the gateway's SQLite file."""

from dataclasses import replace
from typing import Final

import sqlite_utils

from wavry_cp.gateway.accounts.store import NewLogin, StoredLogin, TokenOwner, User
from wavry_cp.gateway.accounts.tokens import TokenHash
from wavry_cp.operators.audit import AuditEntry

from .operators import AdminSqlite, append_audit

__all__ = ["AccountSqlite", "own_accounts"]

_USER: Final = "SELECT username, password_hash, created_at, last_login_at FROM users"
_TRIM_TOKENS: Final = """
    DELETE FROM tokens WHERE username = :username AND temporary = :temporary AND number NOT IN (
        SELECT number FROM tokens WHERE username = :username AND temporary = :temporary
        ORDER BY number DESC LIMIT :most
    ) RETURNING token_hash
"""
_NOTE_LOGIN: Final = """
    UPDATE users SET last_login_at = :created_at
    WHERE username = :username AND password_hash = :hash
"""
_ADD_TOKEN: Final = """
    INSERT INTO tokens (
        token_hash, username, created_at, expires_at, login_id, temporary, number
    ) VALUES (
        :token, :username, :created_at, :expires_at, :login_id, :temporary,
        (SELECT coalesce(max(number), 0) + 1 FROM tokens WHERE username = :username)
    )
"""
_ADD_USER: Final = """
    INSERT INTO users (username, password_hash, created_at) SELECT :username, :hash, :now_s
    WHERE NOT EXISTS (SELECT 1 FROM deleted_users WHERE username = :username)
    ON CONFLICT DO NOTHING
"""


def own_accounts(db: sqlite_utils.Database) -> None:
    """Migration: what users change of their own accounts."""
    db.execute("ALTER TABLE tokens ADD COLUMN login_id TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE tokens ADD COLUMN temporary INTEGER NOT NULL DEFAULT 0")
    db.execute("UPDATE tokens SET login_id = lower(hex(randomblob(5)))")
    db.execute(
        """
        CREATE TABLE password_resets (
            username TEXT PRIMARY KEY REFERENCES users (username) ON DELETE CASCADE,
            token_hash TEXT NOT NULL UNIQUE,
            expires_at INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """
    )
    db.execute(
        """
        CREATE TABLE deleted_users (
            username TEXT PRIMARY KEY,
            deleted_at INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """
    )


class AccountSqlite(AdminSqlite):
    """`AccountStore` over a `Database`."""

    # -- accounts ---------------------------------------------------------------------------

    async def add_user(self, username: str, password_hash: str, *, now_s: int) -> bool:
        """See `AccountStore`."""
        values = {"username": username, "hash": password_hash, "now_s": now_s}
        return await self._database.run(lambda db: bool(db.execute(_ADD_USER, values).rowcount))

    async def user(self, username: str) -> User | None:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> User | None:
            row = db.execute(f"{_USER} WHERE username = ?", (username,)).fetchone()
            return None if row is None else User(*row)

        return await self._database.run(work)

    async def users(self, *, after: str, limit: int) -> tuple[User, ...]:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> tuple[User, ...]:
            query = f"{_USER} WHERE username > ? ORDER BY username LIMIT ?"
            return tuple(User(*row) for row in db.execute(query, (after, limit)))

        return await self._database.run(work)

    async def count_users(self) -> int:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> int:
            return int(db.execute("SELECT count(*) FROM users").fetchone()[0])

        return await self._database.run(work)

    async def set_password_hash(self, username: str, password_hash: str, *, before: str) -> None:
        """See `AccountStore`."""
        values = (password_hash, username, before)
        await self._database.run(
            lambda db: (
                db.execute(
                    "UPDATE users SET password_hash = ? WHERE username = ? AND password_hash = ?",
                    values,
                ).rowcount
            )
        )

    async def change_password(
        self, username: str, password_hash: str, *, keep: TokenHash | None, audit: AuditEntry
    ) -> tuple[TokenHash, ...]:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> tuple[TokenHash, ...]:
            append_audit(db, audit)
            return _new_password(db, username, password_hash, keep)

        return await self._database.run(work)

    async def delete_user(
        self, username: str, *, now_s: int, keep_name: bool, audit: AuditEntry
    ) -> tuple[TokenHash, ...] | None:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> tuple[TokenHash, ...] | None:
            ended = _end_logins(db, username, None, None)
            # Logins, sessions and resets go with the account: they refer to it.
            if not db.execute("DELETE FROM users WHERE username = ?", (username,)).rowcount:
                return None
            if keep_name:
                db.execute("INSERT INTO deleted_users VALUES (?, ?)", (username, now_s))
            append_audit(db, audit)
            return ended

        return await self._database.run(work)

    async def free_names(self, *, deleted_before_s: int) -> int:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> int:
            query = "DELETE FROM deleted_users WHERE deleted_at < ?"
            return int(db.execute(query, (deleted_before_s,)).rowcount)

        return await self._database.run(work)

    # -- resets -----------------------------------------------------------------------------

    async def put_reset(
        self, username: str, token: TokenHash, *, expires_at: int, audit: AuditEntry
    ) -> bool:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> bool:
            known = db.execute("SELECT 1 FROM users WHERE username = ?", (username,)).fetchone()
            if known is None:
                return False
            db.execute(
                "INSERT OR REPLACE INTO password_resets (username, token_hash, expires_at) "
                "VALUES (?, ?, ?)",
                (username, token, expires_at),
            )
            append_audit(db, audit)
            return True

        return await self._database.run(work)

    async def is_reset(self, username: str, token: TokenHash, *, now_s: int) -> bool:
        """See `AccountStore`."""
        return await self._database.run(lambda db: _is_reset(db, username, token, now_s))

    async def use_reset(
        self, username: str, token: TokenHash, password_hash: str, *, audit: AuditEntry
    ) -> tuple[TokenHash, ...] | None:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> tuple[TokenHash, ...] | None:
            if not _is_reset(db, username, token, audit.at_s):
                return None
            append_audit(db, audit)
            return _new_password(db, username, password_hash, None)

        return await self._database.run(work)

    # -- logins -----------------------------------------------------------------------------

    async def add_token(
        self, new: NewLogin, *, password_hash: str, max_tokens: int
    ) -> tuple[TokenHash, ...] | None:
        """See `AccountStore`."""
        values = {
            "token": new.token,
            "username": new.username,
            "created_at": new.created_at,
            "expires_at": new.expires_at,
            "login_id": new.login_id,
            "temporary": int(new.temporary),
            "hash": password_hash,
            "most": max_tokens,
        }

        def work(db: sqlite_utils.Database) -> tuple[TokenHash, ...] | None:
            if not db.execute(_NOTE_LOGIN, values).rowcount:
                return None
            db.execute(_ADD_TOKEN, values)
            ended = db.execute(_TRIM_TOKENS, values).fetchall()
            return tuple(TokenHash(row[0]) for row in ended)

        return await self._database.run(work)

    async def token_owner(self, token: TokenHash, *, now_s: int) -> TokenOwner | None:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> TokenOwner | None:
            row = db.execute(
                "SELECT username, expires_at FROM tokens WHERE token_hash = ? AND expires_at > ?",
                (token, now_s),
            ).fetchone()
            return None if row is None else TokenOwner(*row)

        return await self._database.run(work)

    async def logins(self, username: str, *, now_s: int) -> tuple[StoredLogin, ...]:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> tuple[StoredLogin, ...]:
            rows = db.execute(
                "SELECT login_id, token_hash, created_at, expires_at, temporary FROM tokens "
                "WHERE username = ? AND expires_at > ? ORDER BY number DESC",
                (username, now_s),
            )
            return tuple(
                StoredLogin(row[0], TokenHash(row[1]), row[2], row[3], bool(row[4])) for row in rows
            )

        return await self._database.run(work)

    async def end_logins(
        self, username: str, *, login_id: str | None, keep: TokenHash | None, audit: AuditEntry
    ) -> tuple[TokenHash, ...]:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> tuple[TokenHash, ...]:
            ended = _end_logins(db, username, login_id, keep)
            if ended or login_id is None:
                append_audit(db, replace(audit, reason=audit.reason or f"{len(ended)} ended"))
            return ended

        return await self._database.run(work)

    async def remove_token(self, token: TokenHash) -> bool:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> bool:
            return bool(db.execute("DELETE FROM tokens WHERE token_hash = ?", (token,)).rowcount)

        return await self._database.run(work)

    async def remove_expired_tokens(self, *, now_s: int) -> int:
        """See `AccountStore`."""

        def work(db: sqlite_utils.Database) -> int:
            db.execute("DELETE FROM password_resets WHERE expires_at <= ?", (now_s,))
            return int(db.execute("DELETE FROM tokens WHERE expires_at <= ?", (now_s,)).rowcount)

        return await self._database.run(work)


def _new_password(
    db: sqlite_utils.Database, username: str, password_hash: str, keep: TokenHash | None
) -> tuple[TokenHash, ...]:
    """Set a password; logins and resets of the old one end."""
    db.execute("UPDATE users SET password_hash = ? WHERE username = ?", (password_hash, username))
    db.execute("DELETE FROM password_resets WHERE username = ?", (username,))
    return _end_logins(db, username, None, keep)


def _end_logins(
    db: sqlite_utils.Database, username: str, login_id: str | None, keep: TokenHash | None
) -> tuple[TokenHash, ...]:
    rows = db.execute(
        "DELETE FROM tokens WHERE username = :username AND token_hash != coalesce(:keep, '') "
        "AND login_id = coalesce(:login_id, login_id) RETURNING token_hash",
        {"username": username, "keep": keep, "login_id": login_id},
    ).fetchall()
    return tuple(TokenHash(row[0]) for row in rows)


def _is_reset(db: sqlite_utils.Database, username: str, token: TokenHash, now_s: int) -> bool:
    found = db.execute(
        "SELECT 1 FROM password_resets WHERE username = ? AND token_hash = ? AND expires_at > ?",
        (username, token, now_s),
    ).fetchone()
    return found is not None
