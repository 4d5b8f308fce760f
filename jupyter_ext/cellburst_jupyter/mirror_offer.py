"""This kernel's environment and its notebook's folder for another machine: made and sent when the gateway asks (MirrorNeeded).

Only then, because most cells run where the environment can be shown live. Reading 200 packages' metadata takes 0.1 s, sending the
sources of editable ones as long as the line takes: in a thread, while the cell says what it waits for. Nothing is kept between
cells: what was sent before is at the gateway already and is not sent again.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import MirrorNeeded, MirrorRecipe

from .environment_notebook import folder_rule

if TYPE_CHECKING:
    from cellburst.blobs import BlobClient
    from cellburst.image import Recipe

    from .session import RemoteSession

_one = threading.Lock()  # sessions that ask at the same time want the same files


class MirrorOffer:
    """Answers a session's MirrorNeeded. `folder` is the notebook's, `blobs` are those of the link that is up."""

    def __init__(self, session: RemoteSession, folder: Path, blobs: Callable[[], BlobClient]) -> None:
        self._session = session
        self._folder = folder
        self._blobs = blobs
        self._asked: dict[str, int] = {}  # how often, by call: those that are being answered

    def needed(self, needed: MirrorNeeded) -> None:
        """On the loop: answer in a thread. Asked again for the same call, the first answer will do if it is still to come."""
        first = needed.call not in self._asked
        self._asked[needed.call] = self._asked.get(needed.call, 0) + 1
        if first:
            asyncio.get_running_loop().run_in_executor(None, self._answer, needed)

    def _answer(self, needed: MirrorNeeded) -> None:
        while True:
            asked = self._asked[needed.call]
            answer = self._made(needed)
            lost = answer.error is not None and answer.error.code in (ErrorCode.GATEWAY_DOWN, ErrorCode.LINK_CLOSED)
            if not lost or asked == self._asked[needed.call]:
                break  # else it was asked again, on the link that is up now
        del self._asked[needed.call]
        self._session.send(answer)

    def _made(self, needed: MirrorNeeded) -> MirrorRecipe:
        answer = MirrorRecipe(call=needed.call)
        try:
            with _one:
                self._send(needed, answer)
        except CellburstError as why:
            answer.error = why.info
        except Exception as why:
            # Another package's metadata may be of any shape; who waits at the gateway must hear of it all the same.
            answer.error = error(
                ErrorCode.INTERNAL, f"this kernel's packages could not be read: {type(why).__name__}: {why}",
                next="give the cell an image=",
            ).info  # fmt: skip
        return answer

    def _send(self, needed: MirrorNeeded, answer: MirrorRecipe) -> None:
        from cellburst.image import Image, Recipe
        from cellburst.image_build import packed, send_files

        where = f"this environment is to be built on {needed.machine}"
        if needed.folder_only:
            where = f"the notebook's folder goes to {needed.machine}"
        self._session.doing(needed.call, where if needed.folder_only else f"{where}: reading its packages")
        nothing = nullcontext(Recipe(ImageRecipe(steps=[]), {}))
        with (
            nothing if needed.folder_only else packed(Image.mirror()) as recipe,
            tempfile.TemporaryDirectory(prefix="cellburst-folder-") as place,
        ):
            words = self._add_folder(recipe, Path(place))
            send_files(recipe, self._blobs(), lambda line: self._session.doing(needed.call, f"{where}: {line}"))
            answer.folder, recipe.recipe.folder = recipe.recipe.folder, None
            answer.recipe = None if needed.folder_only else recipe.recipe
        self._session.doing(needed.call, where)
        if words:
            self._session.tell(needed.call, words)

    def _add_folder(self, recipe: Recipe, place: Path) -> str:
        """Add the notebook's folder, as far as it may go along; what there is to say of it."""
        from cellburst.folder_pack import pack_folder
        from cellburst.image_packs import PackWriter

        mode, note = folder_rule(str(self._folder))
        if mode == "none":
            return note
        packs = PackWriter(place)
        try:
            found = pack_folder(self._folder, packs, python_only=mode == "python_files")
        except CellburstError as why:
            return f"the notebook's folder did not go along: {why.info.message}"
        if found is None:
            return ""
        recipe.recipe.folder = found.pack
        recipe.files.update(packs.files)
        return found.words()
