"""Where a table's images lie: the paths and URIs of its image column, made absolute. Nothing is fetched.

A relative path starts at the table's folder, or at `--image-root`, and stays below it. What has a
scheme, and an absolute path, are left as they are; whether they can be had is for `prepare.fetch`.
"""

import posixpath
import re
from collections.abc import Iterable
from itertools import islice

from llava_batch.errors import UsageError
from llava_batch.read.reading import Reading
from llava_batch.read.row import Row
from llava_batch.storage import uri_of
from llava_batch.unit import Unit

_ABSOLUTE = re.compile(
    r"/|[A-Za-z][A-Za-z0-9+.-]+:/|(data|javascript|blob|about|mailto):", re.IGNORECASE
)
_ON_THE_WEB = re.compile(r"https?:", re.IGNORECASE)
_FIRST_ROWS = 32


class Escapes(ValueError):
    """A relative path that leaves the folder it starts at; says what to do."""


def root_of(unit: Unit, reading: Reading) -> str:
    """Where relative paths of the unit's image column start: a path, or a URI without credentials."""
    return reading.image_root or uri_of(unit.fs, posixpath.dirname(unit.path))


def absolute(text: str, root: str) -> str:
    """The path or URI that a cell's `text` means.

    Raises:
        Escapes: it is relative and leaves `root`.
    """
    if _ABSOLUTE.match(text):
        return text
    below = posixpath.normpath(text)
    if below == ".." or below.startswith("../"):
        raise Escapes(
            f"{text:.200}: leaves the folder {root}; name the one above with --image-root"
        )
    return f"{root.rstrip('/')}/{below}"


def refuse_the_web(rows: Iterable[Row], reading: Reading, shown: str) -> None:
    """Look at the first of a table's rows, before anything is started.

    Raises:
        UsageError: all that name an image name one on the web, and that was not allowed.
    """
    if reading.allow_http:
        return
    uris = [uri for row in islice(rows, _FIRST_ROWS) for uri in row.uris if uri]
    if uris and all(_ON_THE_WEB.match(uri) for uri in uris):
        raise UsageError(
            f"{shown}: its images lie on the web (http); give --allow-http if they are to be fetched"
        )
