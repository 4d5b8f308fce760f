"""REST beside the live figures: status, sessions, cost, secrets."""

from __future__ import annotations

import msgspec
from jupyter_server.auth.decorator import authorized
from tornado.web import authenticated

from cellburst_protocol.messages import (
    CostReport,
    DeleteSecret,
    Done,
    GetCost,
    GetLogs,
    GetSpending,
    GetStatus,
    ListSecrets,
    Logs,
    ParkSession,
    PutSecret,
    SecretList,
    SecretRow,
    SessionParked,
    SetBudget,
    Spending,
    Status,
    StopSession,
)

from .base import Base
from .gateway import PARK_SECONDS


class StatusHandler(Base):
    """GET status."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """The whole picture."""
        self.answer(await self.gateway.ask(GetStatus(), Status))


class StartHandler(Base):
    """POST start."""

    @authenticated
    @authorized
    async def post(self) -> None:
        """Start the user's own gateway; answered with the status when it serves."""
        await self.gateway.start()
        self.answer(await self.gateway.ask(GetStatus(), Status))


class SessionHandler(Base):
    """DELETE sessions/ID."""

    @authenticated
    @authorized
    async def delete(self, session: str) -> None:
        """Stop it."""
        await self.gateway.ask(StopSession(session=session), Done)
        self.answer({})


class ParkHandler(Base):
    """POST sessions/ID/park."""

    @authenticated
    @authorized
    async def post(self, session: str) -> None:
        """Put it away; answered when it is safe on disk."""
        self.answer(await self.gateway.ask(ParkSession(session=session), SessionParked, PARK_SECONDS))


class LogsHandler(Base):
    """GET sessions/ID/logs."""

    @authenticated
    @authorized
    async def get(self, session: str) -> None:
        """The end of what it printed."""
        self.answer(await self.gateway.ask(GetLogs(session=session), Logs))


class CostHandler(Base):
    """GET cost."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """By session."""
        self.answer(await self.gateway.ask(GetCost(), CostReport))


class SpendingHandler(Base):
    """GET spending?since=UNIX_SECONDS."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """By hour, notebook and GPU."""
        try:
            since = float(self.get_query_argument("since", "0"))
        except ValueError:
            since = 0.0
        self.answer(await self.gateway.ask(GetSpending(since_unix_seconds=since), Spending))


class Budget(msgspec.Struct, kw_only=True):
    """What a month may cost, "" for nothing said."""

    usd_per_month: str = ""


class BudgetHandler(Base):
    """PUT budget."""

    @authenticated
    @authorized
    async def put(self) -> None:
        """Keep it."""
        await self.gateway.ask(SetBudget(usd_per_month=self.body(Budget).usd_per_month), Done)
        self.answer({})


class NewSecret(msgspec.Struct, kw_only=True):
    """What the form sends; the only way of a value is inward."""

    name: str
    values: dict[str, str]
    mode: str = "create"


class SecretsHandler(Base):
    """GET and POST secrets."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """Names and keys."""
        self.answer(await self.gateway.ask(ListSecrets(), SecretList))

    @authenticated
    @authorized
    async def post(self) -> None:
        """Make or replace one; answered with its name and keys."""
        new = self.body(NewSecret)
        mode = new.mode if new.mode in ("replace", "update") else "create"
        self.answer(await self.gateway.ask(PutSecret(name=new.name, values=new.values, mode=mode), SecretRow))  # type: ignore[arg-type]


class SecretHandler(Base):
    """DELETE secrets/NAME."""

    @authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Remove it."""
        await self.gateway.ask(DeleteSecret(name=name), Done)
        self.answer({})
