"""`cellburst disconnect`: ends a machine's worker, removes this gateway's things there, and forgets it when that is done."""

from __future__ import annotations

from cellburst_protocol.errors import ErrorCode, error

from . import embedded, machine_scripts
from .config import Settings
from .machine_connect import Say, status
from .machine_record import Machine, forget, machine, without_keeper
from .machine_ssh import CommandFailed, Ssh, has_terminal

LEAVE_SECONDS = 150.0  # the worker's containers end, twice


def disconnect(name: str, configured: Settings, say: Say, *, only_here: bool = False) -> None:
    """End the worker there, remove its things, and forget the machine. Versions and caches stay for the next time.

    Raises as ssh does when the machine cannot be reached, unless `only_here`; then it is still connected.
    """
    folders = configured.folders
    one = machine(folders, name)
    if not only_here:
        with Ssh(one.dial, folders.run, ask=has_terminal()) as ssh:
            ssh.open()
            with without_keeper(folders, name):
                _leave(ssh, one, say)
                forget(folders, one)
        return
    with without_keeper(folders, name):
        forget(folders, one)


def _leave(ssh: Ssh, one: Machine, say: Say) -> None:
    """End the worker there and remove its things. Raises CellburstError where anything is left."""

    def there(text: str) -> str:
        try:
            return ssh.script(
                machine_scripts.by("sudo -n" if one.sudo else "", text, one.folder), seconds=LEAVE_SECONDS
            ).strip()
        except CommandFailed as why:
            raise error(
                ErrorCode.UNAVAILABLE, f"{one.target} is still connected: {why.last_lines(3) or f'status {why.status}'}",
                next=f"put that right there, and disconnect again; or `cellburst disconnect {one.name} --only-here`",
            ) from None  # fmt: skip

    said = there(machine_scripts.STOP)
    if said in ("stopped", "killed"):
        say(
            "stop",
            f"the worker {'did not run' if said == 'stopped' else 'had to be killed'}: one more ends what it left",
        )
        said = there(machine_scripts.TIDY)
    say("stop", f"the worker ended{' (it had to be killed)' if said == 'killed' else ''}")
    there(machine_scripts.REMOVE)
    say("remove", f"removed {one.folder} there; {one.base} keeps what the next connection needs")


def ends(name: str, configured: Settings) -> list[str]:
    """What a disconnection would end: the sessions that run or are parked there, in words. Empty where no gateway runs."""
    if embedded.find(configured.folders) is None:
        return []
    found = []
    for row in status().sessions:
        title = f"{row.name} of {row.notebook.rpartition('/')[2]}"
        if row.container is not None and row.container.worker == name:
            found.append(f"{title}{' (a cell runs)' if row.running_call else ''}")
        elif row.parked is not None and row.parked.worker == name:
            found.append(f"{title} (parked)")
    return found
