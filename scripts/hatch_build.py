"""Puts the built JupyterLab panel into the wheel, where JupyterLab looks for it. `scripts/panel.sh` builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "share/jupyter/labextensions/@cellburst/labextension"


class PanelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds it as data; an editable install gets a link from `scripts/panel.sh` instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is made."""
        if version == "editable":
            return
        built = Path(self.root) / "jupyter_ext" / "cellburst_jupyter" / "labextension"
        if not (built / "package.json").exists():
            self.app.display_warning(
                "this wheel has no JupyterLab panel: scripts/panel.sh builds it, with Node 20.19 or later"
            )
            return
        for file in built.rglob("*"):
            if file.is_file() and not file.name.startswith("."):
                build_data["shared_data"][str(file)] = f"{PLACE}/{file.relative_to(built).as_posix()}"
        build_data["shared_data"][str(Path(self.root) / "install.json")] = f"{PLACE}/install.json"
