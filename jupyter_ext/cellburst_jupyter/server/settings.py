"""What an operator may set, in Jupyter's own configuration (`c.CellburstServer.start_gateway = False`)."""

from __future__ import annotations

from traitlets import Bool, Float, Int
from traitlets.config import Configurable


class CellburstServer(Configurable):
    """Cellburst in this Jupyter server."""

    start_gateway = Bool(
        True, help="Start this user's own gateway when the panel is opened and none is configured or running."
    ).tag(config=True)
    poll_seconds = Float(
        0.25, help="How often the gateway is asked while a window is visible; a change is shown within that time."
    ).tag(config=True)
    push_seconds = Float(1.0, help="Figures that change all the time are sent to windows at most this often.").tag(
        config=True
    )
    max_upload_bytes = Int(
        64 * 1024**3, help="The largest file that may be uploaded to a volume through the browser."
    ).tag(config=True)
