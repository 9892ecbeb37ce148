"""A storage that is away costs waiting, not answers; one that refuses costs neither."""

import errno

import pytest

from llava_batch.patience import is_passing
from llava_batch.storage import write_whole
from tests.away import DOWN, Clock, Store

S3 = "When reading information for key 'k' in bucket 'b': AWS Error {} during HeadObject operation"


@pytest.mark.parametrize(
    "error",
    [
        OSError(DOWN),
        ConnectionResetError("gone"),
        TimeoutError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(S3.format("SLOW_DOWN")),
        OSError(S3.format("INTERNAL_FAILURE")),
        OSError(S3.format("UNKNOWN (HTTP status 503)")),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(error: OSError) -> None:
    assert is_passing(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file"),
        FileNotFoundError("without a number"),
        PermissionError(errno.EACCES, "no"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(S3.format("ACCESS_DENIED")),
        OSError(S3.format("INVALID_ACCESS_KEY_ID")),
        OSError(S3.format("SIGNATURE_DOES_NOT_MATCH")),
        OSError(S3.format("NO_SUCH_BUCKET")),
        OSError(S3.format("UNKNOWN (HTTP status 403)")),
        OSError(S3.format("UNKNOWN (HTTP status 301)")),  # a bucket of another region
        OSError("Unable to parse ExceptionName: ExpiredToken Message: the token has expired"),
        OSError("Cannot open for reading: path '/out/_job.json' is a directory"),
    ],
    ids=str,
)
def test_a_refusal_is_final_also_where_it_was_told_on(error: OSError) -> None:
    assert not is_passing(error)
    told_on = OSError("PermissionError: it could not be read")
    told_on.__cause__ = error
    assert not is_passing(told_on)
    store, clock = Store(), Clock()

    def refuse() -> bool:
        raise error

    store.down = refuse
    with pytest.raises(OSError):
        write_whole(store.fs, "lake/a", b"x", clock.patience())
    assert clock.slept == []


def test_a_store_that_is_away_for_minutes_is_waited_for_and_told_of_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, clock = Store(), Clock()
    store.down = lambda: clock.now < 300
    write_whole(store.fs, "lake/a", b"x", clock.patience())
    assert store.objects == {"lake/a": b"x"}
    assert clock.slept[:6] == [1, 2, 4, 8, 16, 30] and max(clock.slept) == 30
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "NETWORK_CONNECTION" in said and "for another 597 s (--storage-patience)" in said


def test_patience_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    store, clock = Store(down=lambda: True), Clock()
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        write_whole(store.fs, "lake/a", b"x", clock.patience(100))
    assert clock.now == 100


def test_a_blip_of_seconds_is_waited_for_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    store, clock = Store(), Clock()
    store.down = lambda: clock.now < 3
    write_whole(store.fs, "lake/a", b"x", clock.patience())
    assert capsys.readouterr().err == ""
