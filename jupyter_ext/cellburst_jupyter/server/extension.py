"""Loading into a Jupyter server. The link to the gateway ends with the process."""

from __future__ import annotations

from typing import Any

from jupyter_server.utils import url_path_join

from . import actions, runs, schedules, shareds, volumes
from .gateway import Gateway
from .live import LiveHandler, Watcher
from .schedule_books import Notebooks
from .settings import CellburstServer
from .transfers import Volumes

NAMESPACE = "cellburst"
ONE = r"([^/]+)"  # a name or id, percent-encoded


def routes(gateway: Gateway, watcher: Watcher, options: CellburstServer) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """Every route there is, below `BASE_URL/cellburst/`."""
    both = {"gateway": gateway, "options": options}
    books = both | {"books": Notebooks(gateway)}
    files = both | {"volumes": Volumes(gateway)}
    shared = files | {"shareds": shareds.Shareds(gateway)}
    return [
        (r"status", actions.StatusHandler, both),
        (r"start", actions.StartHandler, both),
        (rf"sessions/{ONE}", actions.SessionHandler, both),
        (rf"sessions/{ONE}/park", actions.ParkHandler, both),
        (rf"sessions/{ONE}/logs", actions.LogsHandler, both),
        (r"cost", actions.CostHandler, both),
        (r"spending", actions.SpendingHandler, both),
        (r"budget", actions.BudgetHandler, both),
        (r"secrets", actions.SecretsHandler, both),
        (rf"secrets/{ONE}", actions.SecretHandler, both),
        (r"schedules", schedules.SchedulesHandler, books),
        (r"schedules/preview", schedules.PreviewHandler, books),
        (r"schedules/look", schedules.LookHandler, books),
        (rf"schedules/{ONE}", schedules.ScheduleHandler, books),
        (rf"schedules/{ONE}/take", schedules.TakeHandler, books),
        (rf"schedules/{ONE}/runs", schedules.ScheduleRunsHandler, books),
        (r"ends", runs.EndsHandler, both),
        (rf"runs/{ONE}", runs.RunHandler, both),
        (rf"runs/{ONE}/notebook", runs.RunNotebookHandler, both),
        (rf"runs/{ONE}/files/(.+)", runs.RunFileHandler, both),
        (r"volumes", volumes.VolumesHandler, files),
        (rf"volumes/{ONE}", volumes.VolumeHandler, files),
        (rf"volumes/{ONE}/chunks", volumes.ChunksHandler, files),
        (rf"volumes/{ONE}/chunks/missing", volumes.MissingHandler, files),
        (rf"volumes/{ONE}/files", volumes.FilesHandler, files),
        (rf"volumes/{ONE}/files/(.+)", volumes.FileHandler, files),
        (r"nfs", shareds.SharedsHandler, shared),
        (rf"nfs/{ONE}", shareds.SharedHandler, shared),
        (rf"nfs/{ONE}/size", shareds.SharedSizeHandler, shared),
        (rf"nfs/{ONE}/chunks", volumes.ChunksHandler, files),
        (rf"nfs/{ONE}/chunks/missing", volumes.MissingHandler, files),
        (rf"nfs/{ONE}/files", shareds.SharedFilesHandler, shared),
        (rf"nfs/{ONE}/files/(.+)", shareds.SharedFileHandler, shared),
        (r"live", LiveHandler, {"watcher": watcher}),
    ]


def load(server: Any) -> None:
    """Add the routes below `BASE_URL/cellburst`. Nothing is dialled or started before a window asks."""
    options = CellburstServer(parent=server)
    gateway = Gateway()
    watcher = Watcher(gateway, options)
    base = server.web_app.settings["base_url"]
    made = [(url_path_join(base, NAMESPACE, path), *rest) for path, *rest in routes(gateway, watcher, options)]
    server.web_app.add_handlers(".*$", made)
