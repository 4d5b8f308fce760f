"""`%%modal` for IPython kernels: magics, output relay, run card; and the Jupyter server's side of the panel (`server/`).
See docs/architecture.md.

Loaded by the wheel's IPython configuration in every kernel of its environment, or by `%load_ext cellburst_jupyter`; so
importing and loading cost next to nothing and never fail a kernel.
"""

from __future__ import annotations

import logging
from typing import Any

_loaded: dict[int, Any] = {}


def load_ipython_extension(shell: Any) -> None:
    """Register the magics and hooks. Never raises: a kernel must start whatever is wrong with us."""
    try:
        from .hooks import Hooks
        from .magics import register
        from .notebook import Notebook

        if id(shell) in _loaded:
            return
        notebook = Notebook(shell)
        magics = register(shell, notebook)
        hooks = Hooks(notebook)
        hooks.install()
        _loaded[id(shell)] = (magics, hooks)
    except Exception:
        logging.getLogger(__name__).exception("cellburst could not be loaded into this kernel")


def loaded(shell: Any) -> Any:
    """What a shell's magics keep (a `Notebook`), or None where they are not loaded."""
    found = _loaded.get(id(shell))
    return found[0].notebook if found is not None else None


def unload_ipython_extension(shell: Any) -> None:
    """Take everything back that loading did. Sessions go on; `%modal stop` ends them."""
    from .magics import unregister

    loaded = _loaded.pop(id(shell), None)
    if loaded is not None:
        magics, hooks = loaded
        hooks.uninstall()
        unregister(shell, magics)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "cellburst_jupyter"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "@cellburst/labextension"}]


def _load_jupyter_server_extension(server: Any) -> None:
    from .server.extension import load

    load(server)
