"""Workspaces, principals and bearer tokens. A token's text is never kept: only its SHA-256."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from cellburst_protocol.errors import ErrorCode, error

from .store_base import StoreBase
from .store_rows import Owner, Role, TokenRecord
from .store_schema import principals, tokens, workspaces


def hash_token(token: str) -> str:
    """SHA-256 of a token's text in hex. Tokens are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def _token(row: Row[Any]) -> TokenRecord:
    return TokenRecord(
        id=row.id, name=row.name, role=Role(row.role), owner=Owner(row.workspace, row.owner), created=row.created,
        expires=row.expires, revoked=row.revoked,
    )  # fmt: skip


class TokenVerbs(StoreBase):
    """Verbs on who may ask."""

    def ensure_workspace(self, owner: Owner, *, now: float) -> None:
        """Make the workspace and the principal in it where they are not there yet."""
        with self._transaction() as c:
            _ensure(c, owner, now)

    def add_token(
        self, token_hash: str, owner: Owner, *, name: str, role: Role, now: float, expires: float | None = None
    ) -> TokenRecord:
        """Record a token by its hash, with its workspace and principal. The same hash again gives the same row.

        Raises RequestError (CONFLICT) when the hash is recorded for someone else or with another role.
        """
        with self._transaction() as c:
            row = c.execute(select(tokens).where(tokens.c.hash == token_hash)).first()
            if row is None:
                _ensure(c, owner, now)
                c.execute(
                    insert(tokens).values(
                        id=token_hash[:12], workspace=owner.workspace, owner=owner.principal, hash=token_hash, name=name,
                        role=role.value, created=now, expires=expires, revoked=None,
                    )
                )  # fmt: skip
                row = c.execute(select(tokens).where(tokens.c.hash == token_hash)).one()
            found = _token(row)
        if (found.owner, found.role) != (owner, role):
            raise error(
                ErrorCode.CONFLICT, f"token {found.id} is already recorded as {found.role} of {found.owner.principal}"
            )
        return found

    def authenticate(self, token_hash: str, *, now: float) -> TokenRecord:
        """Whose token this is. Raises RequestError (UNAUTHENTICATED), which says whether it is unknown, expired or revoked."""
        with self._transaction() as c:
            row = c.execute(select(tokens).where(tokens.c.hash == token_hash)).first()
        if row is None:
            raise error(
                ErrorCode.UNAUTHENTICATED, "the token is not known to this gateway",
                next="check which gateway is used; the token of this machine's own gateway is DATA/token",
            )  # fmt: skip
        token = _token(row)
        if token.revoked is not None:
            raise error(
                ErrorCode.UNAUTHENTICATED, f"token {token.id} ({token.name}) was revoked", next="ask for a new one"
            )
        if token.expires is not None and now >= token.expires:
            ago = f"{now - token.expires:.0f} s"
            raise error(
                ErrorCode.UNAUTHENTICATED,
                f"token {token.id} ({token.name}) expired {ago} ago",
                next="ask for a new one",
            )
        return token

    def revoke_token(self, token_id: str, *, now: float) -> TokenRecord:
        """End a token; the first time counts. Raises RequestError (NOT_FOUND)."""
        with self._transaction() as c:
            c.execute(update(tokens).where(tokens.c.id == token_id, tokens.c.revoked.is_(None)).values(revoked=now))
            row = c.execute(select(tokens).where(tokens.c.id == token_id)).first()
        if row is None:
            raise error(ErrorCode.NOT_FOUND, f"no token {token_id!r}", next="list the workspace's tokens for their ids")
        return _token(row)

    def list_tokens(self, workspace: str) -> list[TokenRecord]:
        """All tokens of a workspace, revoked ones too, oldest first."""
        with self._transaction() as c:
            rows = c.execute(
                select(tokens).where(tokens.c.workspace == workspace).order_by(tokens.c.created, tokens.c.id)
            )
            return [_token(row) for row in rows]


def _ensure(c: Connection, owner: Owner, now: float) -> None:
    if c.execute(select(workspaces.c.id).where(workspaces.c.id == owner.workspace)).first() is None:
        c.execute(insert(workspaces).values(id=owner.workspace, owner=owner.principal, created=now))
    here = (principals.c.workspace == owner.workspace) & (principals.c.id == owner.principal)
    if c.execute(select(principals.c.id).where(here)).first() is None:
        c.execute(
            insert(principals).values(workspace=owner.workspace, id=owner.principal, owner=owner.principal, created=now)
        )
