"""What errors say, in a line."""

import pytest

from llava_batch.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n\n  late \r\nsecond"), "late"),
        (ValueError(""), "ValueError"),
        (ValueError("\n"), "ValueError"),
        ("said\nmore", "said"),
        ("", "no reason given"),
    ],
)
def test_an_error_is_told_in_one_line_that_is_never_empty(error, line) -> None:
    assert first_line(error) == line
