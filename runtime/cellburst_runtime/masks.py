"""Which names hold keys and tokens, which files of a notebook's folder no container may see, and finding them."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path

# Places of keys, tokens and credentials, by name, wherever they lie below a notebook's folder or a source tree.
SECRET_NAMES = frozenset(
    """.ssh .aws .azure .config .docker .gnupg .kube .gcloud .oci .netrc .pgpass .my.cnf .pypirc .npmrc .git-credentials
    .password-store .vault-token .env .envrc .boto .s3cfg .databrickscfg .terraform.d .jupyter .ipython .mozilla .cellburst
    credentials.json kaggle.json""".split()  # noqa: SIM905 - a word list is easier to read
)
MASKED_PATTERNS = (
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
)
# These two are plain words: a folder of that name is masked only where the programs of that name keep their data.
_WORDS = {
    "jupyter": (".local/share", ".config", ".local/state"),
    "cellburst": (".local/share", ".config", ".local/state"),
}
# Shown although a pattern has them: a template holds no secret, a public key is public.
_SHOWN = ("cacert.pem", ".env.example", ".env.sample", ".env.template", "*.pub")
# Not looked through: installed packages and git's objects hold no keys of the user's, but most of a folder's files.
_PRUNED = frozenset({"node_modules", "site-packages"})
MAX_ENTRIES = 200_000  # beyond this a folder is not a notebook's: looking through it would take seconds at each start


class TooManyEntries(Exception):
    """A folder has more entries than are looked through."""


def is_masked(relative: str) -> bool:
    """Whether the entry at this path below the folder is hidden."""
    parent, _, name = relative.rpartition("/")
    if name in _WORDS:
        return any(parent == place or parent.endswith(f"/{place}") for place in _WORDS[name])
    if name in SECRET_NAMES:
        return True
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _SHOWN):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MASKED_PATTERNS)


def walk(folder: Path, *, max_entries: int = MAX_ENTRIES) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry below a folder that is not masked or inside something masked, with its relative path; links are not
    followed. Masked ones come too, without their content. Raises TooManyEntries."""
    waiting = [(str(folder), "")]
    count = 0
    while waiting:
        place, prefix = waiting.pop()
        try:
            entries = list(os.scandir(place))
        except OSError:
            continue  # gone meanwhile, or not ours to read: then not the container's either
        count += len(entries)
        if count > max_entries:
            raise TooManyEntries(f"{folder} has more than {max_entries} entries")
        for entry in entries:
            relative = prefix + entry.name
            yield relative, entry
            if entry.is_dir(follow_symlinks=False) and not is_masked(relative) and not _is_pruned(relative, entry):
                waiting.append((entry.path, relative + "/"))


def _is_pruned(relative: str, entry: os.DirEntry[str]) -> bool:
    if entry.name in _PRUNED or relative == ".git/objects" or relative.endswith("/.git/objects"):
        return True
    return os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))  # noqa: PTH110, PTH118 - tens of thousands of times


def find_masked(folder: Path, *, max_entries: int = MAX_ENTRIES) -> list[str]:
    """Relative paths of all entries to hide, outermost only. Raises TooManyEntries."""
    return [relative for relative, _ in walk(folder, max_entries=max_entries) if is_masked(relative)]


def always_masked() -> list[str]:
    """Names hidden at the top of every folder, there or not: one made later is hidden too."""
    return sorted(SECRET_NAMES)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is how overlayfs marks a deleted name: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
