"""Every message of every link, as msgspec structs. `PROTOCOL.md` tells the order they come in and what each is for.

On the wire a message is a JSON object whose field `t` is its tag, with raw buffers beside it (see `framing.pack`).
Numeric fields carry their unit in the name; money is decimal text in US dollars. Fields that a newer side adds have
defaults, and unknown fields are ignored, so minor versions mix.
"""

from __future__ import annotations

import msgspec

from .errors import ErrorCode, error
from .framing import Buffer
from .messages_control import (
    CostLine,
    CostReport,
    Done,
    EndedThing,
    FindSession,
    GetCost,
    GetLogs,
    GetStatus,
    Hello,
    Interrupt,
    Logs,
    ParkSession,
    SessionFound,
    SessionParked,
    SessionRow,
    Shutdown,
    Status,
    StopSession,
    Welcome,
    WorkerRow,
)
from .messages_events import (
    CallEnded,
    CellDone,
    CellStarted,
    ContainerEnded,
    ContainerStarted,
    IOPub,
    NamesNeeded,
    Notice,
    Phase,
    Queued,
    StdinRequest,
)
from .messages_images import (
    BuildLease,
    BuildLeaseGiven,
    BuildLeaseOver,
    BuildLog,
    BuildStream,
    DamagedLayer,
    ImageBuilt,
    ImageList,
    ImageLogs,
    ImageRow,
    ImagesPruned,
    ImagesVerified,
    ListImages,
    PruneImages,
    VerifyImages,
)
from .messages_parts import (
    BuildSecret,
    ContainerInfo,
    ContainerUsage,
    EngineInfo,
    FileChange,
    GpuShown,
    GpuUsage,
    Inventory,
    MirrorSpec,
    NameGroup,
    ParkedInfo,
    PhaseTime,
    RemoteName,
    SnapshotUsage,
    StartKind,
    ValuePart,
    WarmContainer,
)
from .messages_runner import (
    ExecutorEnded,
    RunnerCredit,
    RunnerDetach,
    RunnerFreeze,
    RunnerFrozen,
    RunnerHello,
    RunnerLoadNames,
    RunnerNamesLoaded,
    RunnerPing,
    RunnerPong,
    RunnerReady,
    RunnerStart,
)
from .messages_schedules import (
    CancelRun,
    DeleteSchedule,
    Ends,
    GetSchedule,
    ListRuns,
    ListSchedules,
    PauseSchedule,
    PreviewSchedule,
    PutSchedule,
    RunInfo,
    RunList,
    RunSchedule,
    ScheduleInfo,
    ScheduleList,
    SchedulePreview,
    TakeEnds,
)
from .messages_secrets import (
    DeleteSecret,
    ListReleases,
    ListSecrets,
    PutSecret,
    ReleaseList,
    ReleaseRow,
    ReleaseSecrets,
    RotateSecretKey,
    SecretKeyRotated,
    SecretList,
    SecretRow,
)
from .messages_session import (
    Ack,
    CellAccepted,
    CellRefused,
    CommMessage,
    MirrorNeeded,
    MirrorRecipe,
    NamesData,
    Numbered,
    RunCell,
    SessionInfo,
    SessionStream,
    SideReply,
    SideRequest,
    StdinReply,
    UsageReport,
    ValueComing,
)
from .messages_spending import GetSpending, ReservedPrice, SetBudget, Spending, SpendingRow
from .messages_worker import (
    ContainerParked,
    ContainerReady,
    ContainerReport,
    ContainerStream,
    ForgetParked,
    Heartbeat,
    Joined,
    JoinWorker,
    ParkContainer,
    ParkedNames,
    ParkFailed,
    SendParked,
    StartContainer,
    StopContainer,
    Waiting,
)

Event = (
    Phase
    | Queued
    | ContainerStarted
    | ContainerReady
    | CellStarted
    | IOPub
    | StdinRequest
    | NamesNeeded
    | Notice
    | CellDone
    | CallEnded
    | ContainerEnded
    | ContainerParked
    | ParkFailed
    | BuildLog
    | ExecutorEnded
)

Message = (
    Event
    | Done
    | Hello
    | Welcome
    | Interrupt
    | StopSession
    | ParkSession
    | SessionParked
    | GetStatus
    | Status
    | GetLogs
    | Logs
    | GetCost
    | CostReport
    | FindSession
    | SessionFound
    | Shutdown
    | SessionStream
    | SessionInfo
    | RunCell
    | CellAccepted
    | CellRefused
    | NamesData
    | MirrorNeeded
    | MirrorRecipe
    | StdinReply
    | ValueComing
    | CommMessage
    | SideRequest
    | SideReply
    | Ack
    | UsageReport
    | Numbered
    | JoinWorker
    | Joined
    | StartContainer
    | StopContainer
    | ParkContainer
    | ForgetParked
    | SendParked
    | ParkedNames
    | Waiting
    | ContainerStream
    | Heartbeat
    | BuildStream
    | BuildLease
    | BuildLeaseGiven
    | BuildLeaseOver
    | ImageBuilt
    | ListImages
    | ImageList
    | PruneImages
    | ImagesPruned
    | VerifyImages
    | ImagesVerified
    | ImageLogs
    | PutSecret
    | SecretRow
    | ListSecrets
    | GetSpending
    | Spending
    | SetBudget
    | SecretList
    | DeleteSecret
    | RotateSecretKey
    | SecretKeyRotated
    | ListReleases
    | ReleaseList
    | ReleaseSecrets
    | CancelRun
    | DeleteSchedule
    | GetSchedule
    | ListRuns
    | ListSchedules
    | PauseSchedule
    | PreviewSchedule
    | PutSchedule
    | RunInfo
    | RunList
    | RunSchedule
    | ScheduleInfo
    | ScheduleList
    | SchedulePreview
    | TakeEnds
    | Ends
    | RunnerHello
    | RunnerStart
    | RunnerReady
    | RunnerPing
    | RunnerPong
    | RunnerCredit
    | RunnerFreeze
    | RunnerFrozen
    | RunnerDetach
    | RunnerLoadNames
    | RunnerNamesLoaded
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message's head: JSON with its tag in `t`."""
    return _encoder.encode(message)


def decode(head: Buffer) -> Message:
    """The message of a head. Raises RequestError (BAD_MESSAGE) naming the field that is wrong."""
    try:
        return _decoder.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as why:
        raise error(ErrorCode.BAD_MESSAGE, f"a message of the wrong shape: {why}", next="see PROTOCOL.md") from None


__all__ = [
    "Ack", "BuildLease", "BuildLeaseGiven", "BuildLeaseOver",
    "BuildLog", "BuildSecret", "BuildStream", "CallEnded", "CancelRun", "CellAccepted", "CellDone", "CellRefused",
    "CellStarted", "CommMessage", "ContainerEnded", "ContainerInfo", "ContainerParked", "ContainerReady",
    "ContainerReport", "ContainerStarted", "ContainerStream", "ContainerUsage", "CostLine", "CostReport", "DamagedLayer",
    "DeleteSchedule", "DeleteSecret", "Done", "EndedThing", "Ends", "EngineInfo", "Event", "ExecutorEnded", "FileChange",
    "FindSession",
    "ForgetParked", "GetCost", "GetLogs", "GetSchedule", "GetSpending", "GetStatus", "GpuShown", "GpuUsage",
    "Heartbeat", "Hello", "IOPub", "ImageBuilt", "ImageList", "ImageLogs", "ImageRow", "ImagesPruned", "ImagesVerified",
    "Interrupt",
    "Inventory", "JoinWorker", "Joined", "ListImages", "ListReleases", "ListRuns", "ListSchedules", "ListSecrets",
    "Logs", "Message", "MirrorNeeded", "MirrorRecipe", "MirrorSpec", "NameGroup", "NamesData", "NamesNeeded", "Notice",
    "Numbered", "ParkContainer", "ParkFailed", "ParkSession", "ParkedInfo", "ParkedNames", "PauseSchedule",
    "Phase", "PhaseTime", "PreviewSchedule",
    "PruneImages",
    "PutSchedule", "PutSecret", "Queued", "ReleaseList", "ReleaseRow", "ReleaseSecrets", "RemoteName",
    "ReservedPrice", "RotateSecretKey", "RunCell", "RunInfo", "RunList", "RunSchedule", "RunnerCredit", "RunnerDetach",
    "RunnerFreeze", "RunnerFrozen", "RunnerHello", "RunnerLoadNames", "RunnerNamesLoaded", "RunnerPing", "RunnerPong",
    "RunnerReady",
    "RunnerStart", "ScheduleInfo", "ScheduleList", "SchedulePreview", "SecretKeyRotated", "SecretList", "SecretRow",
    "SendParked",
    "SessionFound", "SessionInfo", "SessionParked", "SessionRow", "SessionStream", "SetBudget", "Shutdown",
    "SideReply", "SideRequest", "SnapshotUsage", "Spending", "SpendingRow", "StartContainer", "StartKind", "Status", "StdinReply",
    "StdinRequest", "StopContainer", "StopSession", "TakeEnds", "UsageReport", "ValueComing", "ValuePart", "VerifyImages",
    "Waiting",
    "WarmContainer", "Welcome", "WorkerRow",
    "decode", "encode",
]  # fmt: skip
