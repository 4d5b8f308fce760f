"""One `%%modal` cell: from its line and body to its end. Runs on the kernel's main thread.

check the syntax -> connect, open the session -> send the image's files -> read and pickle its names -> RunCell -> `follow`
until CallEnded
"""

from __future__ import annotations

import ast
import platform
import uuid
from collections.abc import Callable
from typing import Any

from cellburst.parked import parked_now_text
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import RunCell
from cellburst_protocol.resources import Resources

from .card import Card
from .card_model import CardModel
from .cell_image import wanted_image
from .cell_names import Names
from .comms import plain_header
from .errors_shown import remote_error, shown
from .follow import Follower
from .magic_line import CellOptions, check_timeout
from .notebook import Notebook
from .publish import kernel_of, shell_parent, tell
from .session import CellRun, RemoteSession


def run_cell(notebook: Notebook, options: CellOptions, body: str, magic: str = "modal") -> None:
    """Run the body remotely and show it as if it had run here.

    Raises the remote exception as it was shown there, or a CellburstError that shows itself in a few lines.
    """
    code = remote_code(options, body, magic)
    tree = check_syntax(notebook.shell, code)
    _bring_home(notebook)
    card = _card(notebook, options)
    try:
        with wanted_image(notebook.shell.user_ns, options) as image:
            session = _open(notebook, options, card)
            image.send_files(notebook.hub.blobs, _progress(notebook, card))
            card.model.waiting = ""
            names = Names(notebook, session, image)
            run = _call(notebook, options, session, names, code, tree)
        follower = Follower(notebook, session, run, names, card, shell_parent(notebook.shell))
        if options.detach:
            _detach(notebook, follower)
        else:
            follower.follow(start=True)
    except CellburstError as problem:
        notebook.on_remote_error()  # else a later %debug would open on frames of ours
        raise shown(problem) from None
    finally:
        card.fold(notebook.clock())
    notebook.renew_mirrors()


def remote_code(options: CellOptions, body: str, magic: str) -> str:
    """The code as it is sent: the magic's line stays as a comment, so that line numbers are the editor's.

    Another cell magic must stay the first line; such a body counts its own lines, as it does locally.
    """
    if body.lstrip().startswith("%%"):
        return body
    return f"# %%{magic} {options.text}".rstrip() + "\n" + body


def check_syntax(shell: Any, code: str) -> ast.Module:
    """The cell's tree. Raises what IPython shows for a syntax error in this cell, before anything is sent."""
    flags = shell.compile.flags | ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    transformed = code
    try:
        transformed = shell.transform_cell(code)
        tree: ast.Module = compile(transformed, "<cell>", "exec", flags)
        return tree
    except SyntaxError as found:
        problem: SyntaxError = found
    try:  # once more, under the name by which IPython knows this cell
        compile(transformed, shell.compile.cache(transformed, cell_number(shell), code), "exec", flags)
    except SyntaxError as found:
        problem = found
    lines = shell.SyntaxTB.structured_traceback(type(problem), problem, [])
    raise remote_error(type(problem).__name__, str(problem), lines)


def cell_number(shell: Any) -> int:
    """The running cell's number. IPython 9 counts up before it runs a cell, earlier ones after; this one is right in both."""
    return int(shell.displayhook.prompt_count)


def _card(notebook: Notebook, options: CellOptions) -> Card:
    kernel = kernel_of(notebook.shell)
    # Programs that run notebooks take no input and save what widgets say into the notebook: they get the line of text.
    interactive = kernel is not None and bool(getattr(kernel, "_allow_stdin", False))
    model = CardModel(asked=asked(options.resources), began=notebook.clock())
    return Card(
        notebook.shell, model, visible=options.card, widget=interactive and not options.detach, states=notebook.states
    )


def asked(resources: Resources) -> str:
    """What a line asks for, in words."""
    return ",".join(str(choice) for choice in resources.gpus) or "no GPU"


def _progress(notebook: Notebook, card: Card) -> Callable[[str], None]:
    """What happens before the call is there, on the card."""

    def say(line: str) -> None:
        card.model.waiting = line
        card.show(notebook.clock())
        card.tick(notebook.clock())

    return say


def _open(notebook: Notebook, options: CellOptions, card: Card) -> RemoteSession:
    hub = notebook.hub
    hub.connect(_progress(notebook, card))
    assert hub.welcome is not None
    check_timeout(options, hub.welcome.max_timeout_seconds)
    _leave_if_ended(notebook, options.session)
    session = hub.session(options.session)
    card.model.asked = asked(options.in_session(session.goes_on, session.resources) or options.resources)
    card.model.container = session.info.container if session.info is not None else None
    earlier = session.info.superseded if session.info is not None else None
    if earlier is not None and earlier.id not in notebook.offered:
        notebook.offered.add(earlier.id)
        held = f" with {', '.join(earlier.names[:8])}" if earlier.names else ""
        kept = f"parked ({parked_now_text(earlier.parked)})" if earlier.parked is not None else "kept for a while"
        tell(f"session {options.session!r} of before the restart is {kept}{held}: `%modal attach`")
    return session


def _leave_if_ended(notebook: Notebook, name: str) -> None:
    """A session that was stopped elsewhere, or expired, is given up for a new one."""
    session = notebook.hub.sessions.get(name)
    if session is None or not session.has_ended:
        return
    lost = sorted(session.there)
    names = f": {', '.join(lost[:10])}" if lost else ""
    tell(
        f"session {name!r} has ended; this cell starts a new one. Names that lived there are gone{names}", warning=True
    )
    session.close()
    if session.names is not None:
        session.names.container_lost()
    notebook.forget(session)


def _call(
    notebook: Notebook, options: CellOptions, session: RemoteSession, names: Names, code: str, tree: ast.Module
) -> CellRun:
    shell, parent = notebook.shell, shell_parent(notebook.shell)
    header = plain_header(parent.get("header") or {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request"})
    mirror = notebook.mirror(options.mounts)
    names.tell_drift(mirror)
    ready = names.prepare(tree, options)
    request = RunCell(
        call=uuid.uuid4().hex,
        code=code,
        resources=options.in_session(session.goes_on, session.resources),
        image=mirror,
        recipe=names.image.recipe,
        keep_image=names.image.keep,
        header=header,
        metadata={key: value for key, value in (parent.get("metadata") or {}).items() if _plain(value)},
        execution_count=cell_number(shell),
        allow_stdin=bool(getattr(kernel_of(shell), "_allow_stdin", False)) and not options.detach,
        names=ready.groups,
        modules=ready.modules,
        out=list(options.out),
        bound=ready.bound,
        used=ready.used,
        deleted=ready.deleted,
        python_version=platform.python_version(),
        detach=options.detach,
        has_mirror=True,
        secrets=list(options.secrets) if options.secrets is not None else None,
        volumes=list(options.volumes) if options.volumes is not None else None,
    )
    return CellRun(request, ready.buffers, header=header)


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list | dict)


def _detach(notebook: Notebook, follower: Follower) -> None:
    from .detached import DetachedCell

    follower.card.visible = False
    if follower.session.name in notebook.detached:
        raise error(
            ErrorCode.BUSY, f"session {follower.session.name!r} already runs a detached cell",
            next="`%modal attach` waits for it, `%modal stop` ends it, session=NAME uses another container",
        )  # fmt: skip
    DetachedCell(notebook, follower).start()


def _bring_home(notebook: Notebook) -> None:
    for cell in list(notebook.detached.values()):
        cell.bring_home()
