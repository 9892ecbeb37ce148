"""Units: names and stamps of loose files, held small, are what they were given as."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_batch.unit import Names, Stamps, source_of

NAMES = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
STAMPS = st.lists(
    st.none() | st.tuples(st.integers(0, 2**62), st.none() | st.integers(-(2**63) + 1, 2**63 - 1))
)


@pytest.mark.parametrize("names", [(), ("",), ("a", ""), ("a.jpg", "b/c.jpg")])
def test_few_names_are_the_tuple_of_them(names: tuple[str, ...]) -> None:
    held = Names(names)
    assert held == names and names == held and bool(held) == bool(names)
    assert [*held] == [*names] and len(held) == len(names) and hash(held) == hash(names)


@given(NAMES, STAMPS)
def test_what_is_held_small_comes_back(names: list[str], stamps: list) -> None:
    held, stamped = Names(names), Stamps(stamps)
    assert held == tuple(names) and stamped == tuple(stamps)
    assert pickle.loads(pickle.dumps((held, stamped))) == (held, stamped)
    assert (held == (*names, "more")) is False
    if names and stamps:
        both = min(len(names), len(stamps))
        assert (held[0], held[:both]) == (names[0], tuple(names[:both]))
        assert source_of(held[:both], stamped[:both]) == source_of(names[:both], stamps[:both])
