"""Patience with a storage that is away: what is tried again, for how long, and what never is.

Knows errors and seconds, and nothing of files. A refusal (no such file, no permission, no space) is
final; anything else may pass, since waiting for nothing costs minutes and giving up costs answers.
"""

import errno
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llava_batch.errors import first_line

_T = TypeVar("_T")

_FIRST_WAIT_S, _TOLD_WAIT_S, _LONGEST_WAIT_S = 1.0, 4.0, 30.0


@dataclass(frozen=True)
class Patience:
    """How many seconds a storage may be away before that is an error. Picklable."""

    seconds: float
    sleep: Callable[[float], None] = time.sleep
    """How to wait between two tries; where this raises, nothing is tried again."""
    clock: Callable[[], float] = time.monotonic

    def keep_trying(self, call: Callable[[], _T]) -> _T:
        """What `call` gives, called again and again while its storage is away.

        Raises:
            OSError: it is away for too long, or has said no (no such file, no permission, no space).
        """
        outage = Outage(self)
        while True:
            try:
                return call()
            except OSError as error:
                if not outage.waited(error):
                    raise


BRIEF = Patience(3.0)
"""For what a person waits for, and for the first word with a storage: its name may be mistyped."""


class Outage:
    """One stretch of failures: waited for ever longer, told once on stderr where it lasts."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._until: float | None = None
        self._wait = _FIRST_WAIT_S

    def waited(self, error: OSError) -> bool:
        """Whether to try again after `error`, the wait before it over; False: give up."""
        now = self._patience.clock()
        if self._until is None:
            self._until, self._wait = now + self._patience.seconds, _FIRST_WAIT_S
        if now >= self._until or not is_passing(error):
            return False
        if self._wait == _TOLD_WAIT_S:
            at = time.strftime("%H:%M:%S")
            print(f"{at} a storage does not answer ({first_line(error)}); trying for another "
                  f"{self._until - now:.0f} s (--storage-patience)", file=sys.stderr, flush=True)  # fmt: skip
        self._patience.sleep(min(self._wait, self._until - now))
        self._wait = min(2 * self._wait, _LONGEST_WAIT_S)
        return True

    def over(self) -> None:
        """The storage has answered; the next failure is another outage's first."""
        self._until = None


_LASTING = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
}  # fmt: skip
_LASTING_KINDS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Raised by some of fsspec's storages without a number."""
_LASTING_TEXT = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_|SIGNATURE_|NO_SUCH_|MISSING_|MALFORMED|VALIDATION|"
    r"UNRECOGNIZED_CLIENT|OPT_IN_REQUIRED)|Expired ?Token|HTTP status (301|40[0134])|is a directory",
    re.IGNORECASE,
)
"""How pyarrow words a refusal that has no errno; what it words otherwise may pass."""


def is_passing(error: BaseException) -> bool:
    """Whether time may mend what failed: a connection, a server, a mount, and not a refusal."""
    if isinstance(error, OSError) and error.errno in _LASTING:
        return False
    if isinstance(error, _LASTING_KINDS):
        return False
    if _LASTING_TEXT.search(str(error)):
        return False
    return error.__cause__ is None or is_passing(error.__cause__)
