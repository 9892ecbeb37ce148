"""Stores: which filesystem an image's URI lies on, and with whose credentials.

    a path, file:            this machine's own
    s3 (s3a), gs, az, abfs   the store's usual credentials; S3's keys of the driver's environment go along
    any other of fsspec's    only where an input or `--image-root` lies on the same scheme and bucket
    http, https              only with `--allow-http`

An input or `--image-root` given with credentials or options serves all of its scheme and bucket. A table
is data: credentials and options in *its* URIs are never taken, and what follows a bucket is the object's
key as it stands, `?`, `#` and `%` included (of `file:`, percent-decoded).
"""

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

import pyarrow.fs as pafs

from llava_batch.errors import RowError, UsageError
from llava_batch.job import Job
from llava_batch.patience import is_passing
from llava_batch.prepare.pixels import BadImage
from llava_batch.storage import locate, s3_of_environment, uri_of

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)/?(.*)", re.DOTALL)
_OTHER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):", re.DOTALL)
_SAME = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_OPEN = frozenset({"s3", "gs", "az", "abfs", "abfss"})
WEB = frozenset({"http", "https"})
_AZURE = re.compile(r"([^@:]+@)?[a-z0-9-]+(\.(blob|dfs)\.core\.(windows\.net|chinacloudapi\.cn|"
                    r"usgovcloudapi\.net))?")  # fmt: skip

Bucket = tuple[str, str]
"""(scheme, bucket or host): what has one filesystem object, and is there or away as a whole."""


class NoConnection(OSError):
    """A host of the web to which no connection could be made."""


@dataclass(frozen=True)
class Place:
    """Where one image lies: `path` on `fs`, or with neither, a page of the web. `uri` is its text."""

    uri: str
    bucket: Bucket
    fs: pafs.FileSystem | None = None
    path: str = ""

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def ask(self) -> None:
        """Ask the storage for something cheap, beside the image.

        Raises:
            OSError: it does not give that; see `patience.is_passing`.
        """
        assert self.fs is not None
        if self.is_local:
            os.stat(os.path.dirname(self.path))
        else:
            self.fs.get_file_info(self.path.rpartition("/")[0].partition("/")[0] or "/")


@dataclass(frozen=True)
class Stores:
    """The filesystems that there are, picklable; made in the driver, whose credentials go along."""

    given: dict[Bucket, tuple[pafs.FileSystem, str]]
    s3: pafs.S3FileSystem | None
    allow_http: bool
    _opened: dict[Bucket, tuple[pafs.FileSystem, str]] = field(default_factory=dict, repr=False)
    """By scheme and bucket: the filesystem, and how paths on it begin. Of this process."""

    @classmethod
    def of(cls, job: Job) -> Self:
        """Those that a job's inputs and this process's environment give."""
        given = {}
        for text in (*job.input, *([job.image_root] if job.image_root else [])):
            scheme = text.partition("://")[0].lower()
            if "://" in text and scheme not in WEB | {"file"}:
                at = locate(text)
                bucket = _bucket_of(uri_of(at.fs, at.path))
                given[bucket] = at.fs, f"/{bucket[1]}" if at.path.startswith("/") else bucket[1]
                if at.path.startswith("/"):  # a file system of one host, not a store of buckets
                    given[_bucket_of(at.shown)] = at.fs, ""
        return cls(given, s3_of_environment(), job.allow_http)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.given, self.s3, self.allow_http)

    def place(self, uri: str) -> Place:
        """Where the image of an absolute path or URI lies.

        Raises:
            BadImage: `image_missing`, for a URI that is not fetched; says why.
            OSError: its storage could not be asked where its bucket is.
        """
        if "\0" in uri:
            raise _missing("a path with a NUL in it")
        if uri.startswith("/"):
            return Place(uri, ("file", ""), pafs.LocalFileSystem(), uri)
        if uri[:5].lower() == "file:":
            path = _local_path(uri)
            return Place(uri, ("file", ""), pafs.LocalFileSystem(), path)
        scheme, netloc = bucket = _bucket_of(uri)
        if scheme in WEB:
            if not self.allow_http:
                raise _missing("not fetched without --allow-http")
            return Place(uri, bucket)
        match = _URI.fullmatch(uri)
        if not netloc or not match or not match[3]:
            raise _missing("names no object in a bucket")
        fs, base = self._filesystem(bucket)
        return Place(uri, bucket, fs, f"{base}/{match[3]}")

    def _filesystem(self, bucket: Bucket) -> tuple[pafs.FileSystem, str]:
        if bucket not in self._opened:
            self._opened.setdefault(bucket, self._open(bucket))
        return self._opened[bucket]

    def _open(self, bucket: Bucket) -> tuple[pafs.FileSystem, str]:
        scheme, netloc = bucket
        if bucket in self.given:
            return self.given[bucket]
        if scheme not in _OPEN:
            raise _missing(
                f"{scheme}: is fetched only where --input or --image-root lies there too"
            )
        if scheme.startswith("abfs") and not _AZURE.fullmatch(netloc):
            raise _missing("not an address of Azure's storage")
        if "@" in netloc and not scheme.startswith("abfs"):
            raise _missing("credentials in a table's URIs are not used; name the bucket with them as "
                           "--image-root")  # fmt: skip
        if scheme == "s3" and self.s3 is not None:
            return self.s3, netloc
        try:
            at = locate(f"{scheme}://{netloc}")
        except UsageError as error:
            cause = error.__context__
            if isinstance(cause, OSError) and is_passing(cause):
                raise cause from None
            raise _missing(str(error)) from None
        return at.fs, at.path


def _bucket_of(uri: str) -> Bucket:
    match = _URI.fullmatch(uri)
    if match is None or "::" in uri.partition("/")[0]:
        other = _OTHER.match(uri)
        raise _missing(f"{other[1]}: is not fetched" if other else "not a path or URI")
    scheme = match[1].lower()
    return _SAME.get(scheme, scheme), match[2]


def _local_path(uri: str) -> str:
    match = re.fullmatch(r"file:(//([^/]*))?(/.*)", uri, re.DOTALL | re.IGNORECASE)
    if match is None or (match[2] or "localhost").lower() != "localhost":
        raise _missing("a file of another machine, or no absolute path")
    path = unquote(match[3], errors="surrogateescape")
    if "\0" in path:
        raise _missing("a path with a NUL in it")
    return path


def open_local(path: str) -> int:
    """A descriptor of a regular file; of a device or a pipe, which might never end, none.

    Raises:
        BadImage: `image_missing`, it is something else.
        OSError: it could not be opened.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise _missing("not a file")
    return opened


def _missing(what: str) -> BadImage:
    return BadImage(RowError.IMAGE_MISSING, what)
