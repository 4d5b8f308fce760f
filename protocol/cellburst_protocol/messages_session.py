"""A session's stream between kernel and gateway; most of it is passed on to the container.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .errors import ErrorInfo
from .images import FilePack, ImageRecipe
from .messages_base import Base
from .messages_control import SessionRow
from .messages_parts import ContainerInfo, ContainerUsage, MirrorSpec, NameGroup, ParkedInfo, ValuePart
from .resources import Resources
from .states import SessionState
from .volumes import VolumeMount


class SessionStream(Base, kw_only=True, tag="session_stream"):
    """Opens a session's stream. First answer: SessionInfo.

    Without `session`, the live session of (notebook, name) with this `kernel_id` is used or a new one made; one of
    another kernel is superseded, unless `attach` asks to go on with it. With `session`, exactly that one. Numbered
    events after `from_sequence` follow; those not acknowledged before are replayed.
    """

    notebook: str
    name: str = "default"
    kernel_id: str = ""
    session: str = ""
    attach: bool = False
    from_sequence: int = 0


class SessionInfo(Base, kw_only=True, tag="session_info"):
    """What the session is now; sent first, and again whenever its container or state changes.

    `superseded` is the earlier session that this one took the name from, if it is still there to go back to.
    `acknowledged_sequence` (in a stream's first SessionInfo) is the last event that a kernel said it has shown.
    """

    session: str
    notebook: str
    name: str
    state: SessionState
    container: ContainerInfo | None = None
    running_call: str = ""
    last_sequence: int = 0
    acknowledged_sequence: int = 0
    superseded: SessionRow | None = None
    parked: ParkedInfo | None = None


class RunCell(Base, kw_only=True, tag="run_cell"):
    """Run one cell. Kernel -> gateway -> worker -> runner; parts that the next one needs not are removed on the way.

    `call` is the caller's unique id: the same one again is the same call (answered by CellAccepted, not run twice).
    `header` is the Jupyter header of the local execute_request, so that remote messages carry the local parent.
    `mac` is HMAC-SHA256(value key, groups' hashes) where values are sent later by NamesData; names in RunCell itself
    carry none "there" for a new container: the runner answers NamesNeeded. Raw buffers: the inline parts, in order.
    """

    call: str
    input: int = 0
    attempt: int = 1
    code: str
    resources: Resources | None = None
    image: MirrorSpec | None = None
    recipe: ImageRecipe | None = None  # the image to run in; None is the mirror of `image`
    keep_image: bool = False  # as the session has it, whatever `recipe` says; without a session to go on with, `recipe`
    header: dict[str, object] = {}
    metadata: dict[str, object] = {}
    execution_count: int = 1
    allow_stdin: bool = True
    names: list[NameGroup] = []
    modules: list[NameGroup] = []  # modules beside the notebook: {module name: source}; imported again when changed
    out: list[str] = []  # bring these home whatever their size
    bound: list[str] = []  # names the cell binds, as the kernel's reading of it found
    used: list[str] = []  # names the cell may read or change in place
    deleted: list[str] = []
    home_limit_bytes: int = 10_000_000
    python_version: str = (
        ""  # the kernel's: code that the container's Python made is sent to the same minor version only
    )
    detach: bool = False
    value_key: str = ""  # hex; gateway -> worker only, never further
    mac: str = ""
    volumes: list[VolumeMount] | None = None  # by name; None: as the session has them. Ids are the gateway's to fill in
    secrets: list[str] | None = None  # names; None: as the session has them
    with_link: bool = False  # a container made for it may use the gateway: sessions of its own, in its image
    has_mirror: bool = False  # who sends it answers MirrorNeeded: without, the mirror is had on its own machine only


class CellAccepted(Base, kw_only=True, tag="cell_accepted"):
    """The call is in the record. `value_key` (hex) is what the caller checks results with; `sequence` the last event so
    far, so that everything above belongs to this call or later."""

    call: str
    value_key: str
    sequence: int = 0


class CellRefused(Base, kw_only=True, tag="cell_refused"):
    """The call was not accepted: nothing ran and nothing is recorded."""

    call: str
    error: ErrorInfo


class MirrorNeeded(Base, kw_only=True, tag="mirror_needed"):
    """Gateway -> kernel, not numbered: the cell's container starts on `machine`, another one than the kernel's, and its mirror is
    built there, or with `folder_only` an image of its own. Answered with MirrorRecipe. Asked again on a new link: the answer may
    have been lost with the old one."""

    call: str
    machine: str
    folder_only: bool = False


class MirrorRecipe(Base, kw_only=True, tag="mirror_recipe"):
    """The kernel's environment as an image (none where only the folder was asked for), and the files of the notebook's folder,
    with all packs at the gateway already; or why there are none."""

    call: str
    recipe: ImageRecipe | None = None
    folder: FilePack | None = None
    error: ErrorInfo | None = None


class NamesData(Base, kw_only=True, tag="names_data"):
    """The groups a NamesNeeded asked for; raw buffers are their inline parts in order."""

    call: str
    groups: list[NameGroup]
    mac: str = ""


class ValueComing(Base, kw_only=True, tag="value_coming"):
    """A large value is being written now: who will read it may begin. Advisory: nobody waits for it or answers it, it may be
    lost, and what was read so early counts only if it turns out to be the very file that the cell names later.

    Kernel -> gateway -> worker -> runner before a RunCell, while the session is idle; runner -> worker -> gateway -> kernel
    before a CellDone. `file` is the name below `tmp/` of the blob folder, between those that share it; for the runner it is
    IN/<file>.coming on the way in and OUT/<file> on the way out.
    """

    file: str
    size_bytes: int


class StdinReply(Base, kw_only=True, tag="stdin_reply"):
    """What the person typed. `eof` instead of a value is an interrupt of the prompt."""

    call: str
    value: str = ""
    eof: bool = False


class CommMessage(Base, kw_only=True, tag="comm"):
    """A comm_msg or comm_close from the front end. Buffer 0 is {"header", "metadata", "content"} in JSON, the rest are the
    message's own buffers."""

    msg_type: str


class SideRequest(Base, kw_only=True, tag="side_request"):
    """A question beside cells, answered by SideReply while a cell runs too.

    `complete` {code, cursor_pos} · `inspect` {code, cursor_pos, detail_level} · `names` {} (list of RemoteName) ·
    `fetch` {name} (a NameGroup) · `file_list` {} · `file_get` {path} (a blob) · `file_put` {path, hash, size_bytes} ·
    `widgets` {} (states of all widgets). `file_*` are answered by the worker, the rest by the executor.
    """

    id: str
    kind: Literal["complete", "inspect", "names", "fetch", "file_list", "file_get", "file_put", "widgets"]
    content: dict[str, object] = {}
    value_key: str = ""  # gateway -> worker only


class SideReply(Base, kw_only=True, tag="side_reply"):
    """The answer to a SideRequest. `groups` and `blob` as the request's kind says; inline parts are the raw buffers."""

    id: str
    content: dict[str, object] = {}
    groups: list[NameGroup] = []
    blob: ValuePart | None = None
    error: ErrorInfo | None = None
    mac: str = ""
    value_key: str = ""  # gateway -> kernel only: what `mac` is checked with


class Ack(Base, kw_only=True, tag="ack"):
    """All numbered events up to `sequence` are safe with the sender of this. On a session stream: of the session; on a
    container stream: of the container."""

    sequence: int


class UsageReport(Base, kw_only=True, tag="usage"):
    """Live figures once a second while a container lives; not numbered, may be lost."""

    usage: ContainerUsage
    cost_usd: str = "0"
    call_cost_usd: str = "0"
    usd_per_second: str = "0"


class Numbered(Base, kw_only=True, tag="numbered"):
    """A durable event. `sequence` counts from 1 without gaps: per container from worker to gateway, per session from
    gateway to kernel. `call` is empty for events of the container itself. `event` is one of Event, its raw buffers are
    this message's."""

    sequence: int
    call: str = ""
    event: msgspec.Raw
