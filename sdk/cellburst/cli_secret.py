"""`cellburst secret`: made, listed, deleted; never shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import (
    DeleteSecret,
    ListReleases,
    ListSecrets,
    PutSecret,
    ReleaseList,
    RotateSecretKey,
    SecretKeyRotated,
    SecretList,
    SecretRow,
)
from cellburst_protocol.peer import Peer
from cellburst_protocol.secrets import MIN_HIDDEN_CHARACTERS, check_key, check_name, check_values

from .cli_common import ask, err, out, shows_errors
from .parked import age_text

STDIN = "-"
_WARNING = "values on the command line stay in the shell's history; KEY=- asks for one, --from-dotenv reads a file"


@click.group()
def secret() -> None:
    """Secrets: environment variables for cells. No command and no message shows a value again."""


@secret.command()
@click.argument("name")
@click.argument("pairs", metavar="KEY=VALUE...", nargs=-1)
@click.option(
    "--from-dotenv", "file", metavar="FILE", type=click.Path(path_type=Path), help="Take the keys of a .env file."
)
@click.option("--replace", "--force", is_flag=True, help="Take these keys for all that a secret of this name has.")
@click.option("--update", is_flag=True, help="Add these keys to those that it has.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def create(name: str, pairs: tuple[str, ...], file: Path | None, replace: bool, update: bool, as_json: bool) -> None:
    """Make a secret. KEY=- reads the value from standard input, or asks for it without showing it."""
    check_name(name)
    if replace and update:
        raise error(ErrorCode.BAD_ARGUMENT, "--replace and --update at once", next="give one of them")
    values = _from_file(file) if file is not None else {}
    values.update(_from_pairs(pairs))
    check_values(values)
    message = PutSecret(name=name, values=values, mode="replace" if replace else "update" if update else "create")

    async def question(peer: Peer) -> SecretRow:
        answer = await peer.request(message)
        assert isinstance(answer, SecretRow)
        return answer

    row = ask(question, start=True)
    if as_json:
        click.echo(json.dumps(_json(row), indent=2))
        return
    out.print(f"secret {name}: {', '.join(row.keys)} (version {row.version})", markup=False)
    out.print(f"use it in a cell: %%modal secrets={name}", style="dim", markup=False)
    if short := [key for key, value in values.items() if len(value) < MIN_HIDDEN_CHARACTERS]:
        err.print(
            f"not hidden in output, being shorter than {MIN_HIDDEN_CHARACTERS} characters: {', '.join(short)}",
            style="yellow",
        )


@secret.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def list_secrets(as_json: bool) -> None:
    """List secrets with their keys and last use; never values."""

    async def question(peer: Peer) -> SecretList:
        answer = await peer.request(ListSecrets())
        assert isinstance(answer, SecretList)
        return answer

    answer = ask(question)
    if as_json:
        click.echo(json.dumps({"secrets": [_json(row) for row in answer.rows], "notes": answer.notes}, indent=2))
        return
    if not answer.rows:
        out.print("no secrets; `cellburst secret create NAME KEY=-` makes one")
    else:
        table = Table("name", "keys", "version", "changed", "last used", "store", box=None)
        now = time.time()
        for row in answer.rows:
            keys = ", ".join(row.keys) or "-"
            changed = f"{age_text(now - row.updated_unix_seconds)} ago" if row.updated_unix_seconds else "-"
            used = f"{age_text(now - row.last_used_unix_seconds)} ago" if row.last_used_unix_seconds else "never"
            version = str(row.version) if row.version and row.store == "local" else "-"
            table.add_row(row.name, escape(keys), version, changed, used, row.store)
        out.print(table)
    for reason in dict.fromkeys(row.sealed for row in answer.rows if row.sealed):
        err.print(reason, style="red", markup=False)
    for note in answer.notes:
        err.print(note, style="yellow", markup=False)


@secret.command()
@click.argument("name", required=False, default="")
@click.option("--all-sealed", is_flag=True, help="Remove, for good, all secrets whose key is lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shows_errors
def delete(name: str, all_sealed: bool, yes: bool) -> None:
    """Delete a secret. Cells that name it are refused from now on; containers that have it keep it until their next cell."""
    if bool(name) == all_sealed:
        raise error(ErrorCode.BAD_ARGUMENT, "what is to be deleted?", next="give a NAME, or --all-sealed")
    what = "all secrets that cannot be opened" if all_sealed else f"secret {name}"
    if not yes and sys.stdin.isatty():
        click.confirm(f"delete {what}?", abort=True)
    message = DeleteSecret(all_sealed=True) if all_sealed else DeleteSecret(name=check_name(name))
    ask(lambda peer: peer.request(message))
    out.print(f"deleted {what}", markup=False)


@secret.command()
@shows_errors
def rotate() -> None:
    """Encrypt all secrets anew under a new key."""

    async def question(peer: Peer) -> SecretKeyRotated:
        answer = await peer.request(RotateSecretKey())
        assert isinstance(answer, SecretKeyRotated)
        return answer

    answer = ask(question)
    out.print(f"{answer.secret_count} secrets have a new key, in {answer.key_place}", markup=False)


@secret.command()
@click.argument("name", required=False, default="")
@click.option("--limit", default=50, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def releases(name: str, limit: int, as_json: bool) -> None:
    """List which container was given which secret, and what was refused."""

    async def question(peer: Peer) -> ReleaseList:
        answer = await peer.request(ListReleases(secret=name, limit_count=limit))
        assert isinstance(answer, ReleaseList)
        return answer

    answer = ask(question)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(answer.rows), indent=2))
        return
    if not answer.rows:
        out.print("no releases")
        return
    table = Table("when", "secret", "version", "notebook", "container", "worker", "what", box=None)
    for row in answer.rows:
        when = f"{age_text(time.time() - row.at_unix_seconds)} ago"
        what = f"refused: {row.refused}" if row.refused else ", ".join(row.keys)
        version = str(row.version) if row.version and row.store == "local" else "-"
        table.add_row(when, row.secret, version, escape(row.notebook), row.container, row.worker, escape(what))
    out.print(table)


def _from_file(file: Path) -> dict[str, str]:
    from .secret import read_dotenv

    parsed = read_dotenv(file)
    if parsed.duplicates:
        err.print(f"twice in {file}, the last one counts: {', '.join(parsed.duplicates)}", style="yellow", markup=False)
    return parsed.values


def _from_pairs(pairs: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    asked = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise error(
                ErrorCode.BAD_ARGUMENT, "an argument without '='", allowed="KEY=VALUE, or KEY=- to be asked",
                next="quote a value with spaces: 'KEY=a value'",
            )  # fmt: skip
        if check_key(key) in values:
            raise error(ErrorCode.BAD_ARGUMENT, f"{key} is given twice", next="keep one of them")
        values[key] = value
        if value == STDIN:
            asked.append(key)
    if len(asked) < len(values):
        err.print(_WARNING, style="yellow", markup=False)
    interactive = sys.stdin.isatty()
    if len(asked) > 1 and not interactive:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{len(asked)} values from one standard input", next="use --from-dotenv for several"
        )
    for key in asked:
        values[key] = (
            click.prompt(key, hide_input=True, default="", show_default=False)
            if interactive
            else sys.stdin.read().removesuffix("\n")
        )
    return values


def _json(row: SecretRow) -> dict[str, object]:
    return {
        "name": row.name, "keys": row.keys, "version": row.version, "store": row.store, "sealed": row.sealed,
        "created_unix_seconds": row.created_unix_seconds, "updated_unix_seconds": row.updated_unix_seconds,
        "last_used_unix_seconds": row.last_used_unix_seconds,
    }  # fmt: skip
