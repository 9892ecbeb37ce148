"""Where bytes live: local paths and URIs as pyarrow filesystems, and writes that are whole or absent.

Knows paths and bytes, and nothing of what is in them. Credentials travel inside the pickled
filesystem object to the workers and never appear in a printed path.
"""

import mmap
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from llava_batch.errors import UsageError, first_line
from llava_batch.patience import BRIEF, Patience, is_passing

TEMPORARY = "_tmp-"
"""How the names of half-written files begin; they have no extension, so no reader's pattern fits."""

_READ_BYTES = 4 * 2**20
"""Of a request. Larger ones, let go, have glibc keep as much of all that is let go from then on."""

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Location:
    """A path on a filesystem; `shown` is the path as a person may see it, without credentials."""

    fs: pafs.FileSystem
    path: str
    shown: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def info(self) -> pafs.FileInfo:
        return self.fs.get_file_info(self.path)

    def child(self, name: str) -> "Location":
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}", f"{self.shown}/{name}")


def locate(text: str) -> Location:
    """The location that a flag's `text` names: a local path, `file://`, `s3://`, `gs://` or fsspec URI.

    Raises:
        UsageError: a scheme that neither pyarrow nor fsspec knows, or credentials it rejects.
    """
    if not _SCHEME.match(text):
        path = os.path.abspath(os.path.expanduser(text))
        return Location(pafs.LocalFileSystem(), path, text.rstrip("/") or "/")
    shown = without_credentials(text)
    try:
        fs, path = _s3(text) if text.startswith("s3://") else _from_uri(text)
    except (pa.ArrowInvalid, ValueError, ImportError, OSError) as error:
        raise UsageError(f"{shown}: cannot be opened as a URI ({scrubbed(error, text)})") from None
    return Location(fs, path.rstrip("/"), shown.rstrip("/"))


def list_files(location: Location) -> list[pafs.FileInfo]:
    """All files below a folder, sorted by path; names that begin with a dot are left out.

    Raises:
        UsageError: a name that is not UTF-8, which nothing here could open.
    """
    selector = pafs.FileSelector(location.path, recursive=True, allow_not_found=True)
    base = len(location.path) + 1
    try:
        found = (i for i in location.fs.get_file_info(selector) if i.type == pafs.FileType.File)
        visible = (i for i in found if not _has_hidden_part(i.path[base:]))
        return sorted(visible, key=lambda info: info.path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{location.shown}: the name {error.object!r} in it is not UTF-8; "
                         "rename that file") from None  # fmt: skip


def read_bytes(fs: pafs.FileSystem, path: str) -> bytes | None:
    """A small file's bytes, or None where there is no such file."""
    try:
        with fs.open_input_stream(path) as stream:
            # Without a number it is read in smaller pieces: a megabyte was five requests.
            return b"".join(iter(partial(stream.read, _READ_BYTES), b""))
    except FileNotFoundError:
        return None


def write_whole(
    fs: pafs.FileSystem, path: str, data: bytes | pa.Buffer, patience: Patience = BRIEF
) -> None:
    """Write `data` so that a reader sees all of it or nothing, even after a power cut (`whole_file`)."""
    if isinstance(fs, pafs.LocalFileSystem):
        patience.keep_trying(lambda: _write_local(path, data))
    else:
        patience.keep_trying(lambda: _put(fs, path, data))


@contextmanager
def whole_file(fs: pafs.FileSystem, path: str, patience: Patience = BRIEF) -> Iterator[IO[bytes]]:
    """A stream to a file that is there once all of it was written, and not before.

    On a local disk: a temporary name that readers skip, flushed to the disk, then one rename, flushed
    too, so that what is written later is never there without it. For an object store: gathered in a
    temporary file of this machine, then one PUT, which is invisible until it is complete.
    """
    if isinstance(fs, pafs.LocalFileSystem):
        with _renamed(path) as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as stream:
        yield stream
        stream.flush()
        size = os.fstat(stream.fileno()).st_size
        data = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        patience.keep_trying(lambda: _put(fs, path, data))


def delete_file(fs: pafs.FileSystem, path: str) -> None:
    """Delete a file, if it is there."""
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)


def uri_of(fs: pafs.FileSystem, path: str) -> str:
    """The URI of a path on `fs`, without credentials; of a local one, the path itself."""
    if isinstance(fs, pafs.LocalFileSystem):
        return path
    protocol = fs.handler.fs.protocol if fs.type_name.startswith("py::fsspec") else fs.type_name
    scheme = protocol if isinstance(protocol, str) else protocol[0]
    return f"{'gs' if scheme == 'gcs' else scheme}://{path.lstrip('/')}"


def root_uri(text: str) -> str:
    """What a flag's `text` names, as `uri_of` has it; of the web, which is no storage, the text."""
    if text.lower().startswith(("http://", "https://")):
        return text
    at = locate(text)
    return uri_of(at.fs, at.path)


def without_credentials(text: str) -> str:
    """`text` as a person may see it: a URI without its user, password and query."""
    if not _SCHEME.match(text):
        return text
    parts = urlsplit(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def advice(error: OSError) -> str:
    """What a person could do about a storage's failure, to stand behind its own words."""
    if os.environ.get("AWS_SESSION_TOKEN") and not is_passing(error) and error.errno is None:
        return ("the keys in AWS_ACCESS_KEY_ID are a session's and may have ended: set new ones, or "
                "unset them where the machines have a role of their own")  # fmt: skip
    return "check the paths, the credentials and the endpoint"


def storage_options(text: str) -> dict[str, str]:
    """What a table's own library (deltalake, Lance) needs to open the URI `text` as `locate` does, by the
    names that those libraries know; `without_credentials(text)` is the URI to give them. Secret: never
    to be printed. Of another store than S3 nothing: its library reads the usual variables itself.
    """
    if not text.startswith("s3://"):
        return {}
    parts = urlsplit(text)
    given = dict(parse_qsl(parts.query))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" in given:
        host = given["endpoint_override"]
        endpoint = host if "://" in host else f"{given.get('scheme', 'https')}://{host}"
    named = {
        "AWS_ACCESS_KEY_ID": unquote(parts.username or "") or os.environ.get("AWS_ACCESS_KEY_ID"),
        "AWS_SECRET_ACCESS_KEY": unquote(parts.password or "")
        or os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "AWS_SESSION_TOKEN": None if parts.username else os.environ.get("AWS_SESSION_TOKEN"),
        "AWS_REGION": given.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION"),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if (endpoint or "").startswith("http://") else None,
    }
    return {name: value for name, value in named.items() if value}


def _put(fs: pafs.FileSystem, path: str, data: bytes | pa.Buffer | mmap.mmap) -> None:
    with fs.open_output_stream(path) as stream:
        stream.write(data)


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    with _renamed(path) as stream:
        stream.write(data)


@contextmanager
def _renamed(path: str) -> Iterator[IO[bytes]]:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _has_hidden_part(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _from_uri(text: str) -> tuple[pafs.FileSystem, str]:
    try:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(_escaped(text))
    except pa.ArrowInvalid:
        import fsspec

        fs, path = fsspec.core.url_to_fs(text)
        found = pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path
    return found


def _escaped(text: str) -> str:
    """A URI whose path has its braces, brackets and other characters that URIs have not percent-escaped."""
    parts = urlsplit(text)
    return urlunsplit(parts._replace(path=quote(parts.path, safe="/%:@!$&'()*+,;=~-._")))


def _s3(text: str) -> tuple[pafs.FileSystem, str]:
    """An S3 filesystem that carries the driver's own credentials, so that workers need none.

    A URI with credentials or options in it is pyarrow's to read; otherwise the usual AWS variables
    are taken from this process. A session's keys among them end with the session: nothing here could
    renew them. Where there are none, each process asks the usual chain (profile, web identity, the
    machine's role), which renews what ends.
    """
    parts = urlsplit(text)
    own = None if "@" in parts.netloc or parts.query else s3_of_environment()
    if own is None:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(_escaped(text))
        return found
    return own, parts.netloc + parts.path


def s3_of_environment() -> pafs.S3FileSystem | None:
    """S3 with the keys of the usual AWS variables of this process, for any bucket; None without them."""
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not (key and secret):
        return None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return pafs.S3FileSystem(
        access_key=key,
        secret_key=secret,
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_override=endpoint,
        scheme="http" if (endpoint or "").startswith("http://") else "https",
    )


def scrubbed(error: BaseException, text: str) -> str:
    """The error's first line, with anything of the URI's secret parts taken out."""
    line = first_line(error)
    parts = urlsplit(text)
    for secret in (
        parts.netloc.rpartition("@")[0],
        parts.query,
        parts.password or "",
        unquote(parts.password or ""),
        parts.username or "",
    ):
        line = line.replace(secret, "***") if secret else line
    return line
