"""A checkpoint's identity: a hash of all that can change an answer, the same wherever it lies.

Counted are a checkpoint's weights, settings, tokenizer and templates, by name and content; not its
README. A hub's cache names large files by their SHA-256 already; other large files are read in whole,
once: what was found is kept in the user's cache by path, size and time of change.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from llava_batch.storage import write_whole

_COUNTED = re.compile(r".*\.(json|jinja|safetensors|model|bin|py)|merges\.txt|vocab\.txt")
_CARDS = ("training.json", "evaluation.json")
"""What the demo model says of how it was made."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEMBERED_FROM = 2**20
"""Smaller files are quicker read than looked up."""
_CHUNK = 2**22
_MOST_REMEMBERED = 1000


def model_hash(folder: str) -> str:
    """A hash of the folder's files that count, names and all of their content."""
    digest = hashlib.sha256()
    memory = _Memory()
    for path in sorted(Path(folder).iterdir()):
        if _COUNTED.fullmatch(path.name) and path.name not in _CARDS and path.is_file():
            digest.update(f"{path.name} {_content(path, memory)}\n".encode())
    memory.save()
    return digest.hexdigest()[:16]


def first_bytes_hash(folder: str) -> str:
    """What version 0.1.0 took for a folder's hash: names, sizes, and the first 64 KiB of each file."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", ".bin"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {os.path.getsize(path)}\n".encode())
                digest.update(file.read(65536))
    return digest.hexdigest()[:16]


def _content(path: Path, memory: "_Memory") -> str:
    """SHA-256 of a file."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name  # huggingface_hub's cache: a large file's blob has its SHA-256 for a name
    facts = blob.stat()
    if facts.st_size < _REMEMBERED_FROM:
        return hashlib.sha256(blob.read_bytes()).hexdigest()
    key = f"{blob} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
    known = memory.get(key)
    return known or memory.put(key, _read_through(blob))


def _read_through(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Memory:
    """Hashes of large files that were read before; one small JSON file in the user's cache."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = Path(base) / "llava_batch" / "model_hashes.json"
        self._fresh = False
        try:
            said: Any = json.loads(self._path.read_text())
        except (OSError, ValueError):
            said = {}  # never kept, or not by us: the files are read again
        self._known: dict[str, str] = said if isinstance(said, dict) else {}

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def put(self, key: str, value: str) -> str:
        self._known[key] = value
        self._fresh = True
        return value

    def save(self) -> None:
        """Write down what is new; where the cache cannot be written, the files are read again."""
        if not self._fresh:
            return
        last = dict(list(self._known.items())[-_MOST_REMEMBERED:])
        try:
            write_whole(LocalFileSystem(), str(self._path), json.dumps(last, indent=0).encode())
        except OSError:
            return
