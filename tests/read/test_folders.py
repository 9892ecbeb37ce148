"""Folders with anything in them: what is there is in a unit, counted, or refused, and nothing twice."""

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from llava_batch.errors import UsageError
from llava_batch.read import find as finding
from llava_batch.storage import locate
from llava_batch.unit import Unit

FOLDERS = st.sampled_from(["a", "b", "00000", "dt=2026-11-24", "_h", ".h", "x.tar", "out"])
STEMS = st.sampled_from(["a", "b", "00000", "00001", "x", "x.y", "_s", ".s", "r b%~#"])
ENDINGS = st.sampled_from(
    [".tar", ".TAR", ".parquet", ".parq", ".pq", ".jpg", ".PNG", ".txt", ".json", "_stats.json",
     ".csv", ".arrow", ".zip", ".tar.idx", ""]
)  # fmt: skip
PATHS = st.builds(
    lambda folders, stem, ending: "/".join([*folders, stem + ending]),
    st.lists(FOLDERS, max_size=3), STEMS, ENDINGS,
)  # fmt: skip
LINKS = st.tuples(PATHS, st.sampled_from(["..", ".", "gone", "out", "other", "other/a.jpg"]))
"""Links to what is above, gone, the output, and a folder and a file beside the input."""

IMAGES = {".jpg", ".png"}
PARQUET = {".parquet", ".parq", ".pq"}


def lay(root: Path, paths: list[str], links: list[tuple[str, str]]) -> None:
    """The files and links, as far as one is not in the way of another."""
    for path in paths:
        at = root / path
        if not any(part.is_file() for part in at.parents) and not at.exists():
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(path.encode())
    for path, target in links:
        at = root / path
        if at.parent.is_dir() and not os.path.lexists(at):
            there = {"..": at.parent.parent, ".": at.parent, "gone": root / "no such thing"}
            at.symlink_to(there.get(target, (root.parent if "other" in target else root) / target))


def is_folder(path: Path) -> bool:
    return path.is_dir() and path.resolve() == path


class Seen:
    """What an input holds by the letter of the promises, looked up with nothing of the package's."""

    def __init__(self, root: Path, out: Path) -> None:
        self.files: set[str] = set()
        self.hidden: set[str] = set()
        self.own: set[str] = set()
        self._folders: set[str] = set()
        self._look(root.resolve(), out.resolve(), root.resolve())

    def _look(self, folder: Path, out: Path, root: Path) -> None:
        if str(folder) in self._folders:
            return
        self._folders.add(str(folder))
        for at in folder.iterdir():
            real = at.resolve()
            if at.name[0] in "_.":
                self.hidden.add(str(at))
            elif real == out or out in real.parents:
                self.own.add(str(at))
            elif at.is_dir():
                if real not in (root, *root.parents):
                    self._look(real, out, root)
            else:
                self.files.add(str(at))


def files_of(units: list[Unit]) -> list[str]:
    """Every input file of the units, by the path of its real folder."""
    paths = [f"{u.path}/{m}" for u in units for m in u.members]
    paths += [u.path for u in units if u.kind != "files"]
    return [f"{os.path.realpath(os.path.dirname(p))}/{os.path.basename(p)}" for p in paths]


def is_readable(path: str) -> bool:
    kind = os.path.splitext(path)[1].lower()
    return os.path.exists(path) and (kind == ".tar" or kind in IMAGES | PARQUET)


def is_img2datasets(path: str) -> bool:
    """Whether it is a Parquet file beside a tar or folder, and figures of its name stand there."""
    stem, kind = os.path.splitext(path)
    tars = (f"{stem}.tar", f"{stem}.TAR")
    return (
        kind in PARQUET
        and os.path.isfile(f"{stem}_stats.json")
        and (os.path.isdir(stem) or any(map(os.path.isfile, tars)))
    )


REFUSALS = ("would both be unit", "could be the same", "no image, tar or Parquet file there")


@settings(max_examples=400, deadline=None)
@given(
    st.lists(PATHS, max_size=12),
    st.lists(PATHS, max_size=3),
    st.lists(LINKS, max_size=3),
    st.lists(st.sampled_from(["a", "b", "00000", "*", "**", "a/b"]), max_size=2),
)
def test_every_file_is_in_a_unit_or_counted_and_none_is_in_two(paths, others, links, more):
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder).resolve() / "in", Path(folder).resolve() / "in/out"
        lay(root.parent / "other", [*others, "z.csv"], [])
        lay(root, [*paths, "out/_manifest/a.json"], links)
        inputs = [str(root), *(f"{root}/{m}" for m in more if "*" in m or is_folder(root / m))]
        seen = Seen(root, out)
        try:
            found = finding.find(inputs, output=locate(str(out)))
        except UsageError as error:
            refusal = next(r for r in REFUSALS if r in str(error))
            event(refusal)
            if "no image" in refusal:
                beside = any(m not in ("*", "**") for m in more)
                could_be = [p for p in seen.files if is_readable(p) and not is_img2datasets(p)]
                assert seen.files and (beside or not could_be)
            return
        read = files_of(found.units)
        assert [path for path, times in Counter(read).items() if times > 1] == [], "read twice"
        assert set(read) <= seen.files, "made up, hidden, or the run's own"
        for path in seen.files - set(read):
            assert not is_readable(path) or is_img2datasets(path), (
                "left out though it could be read"
            )
        side_files = found.skipped.get("side files", 0)
        assert len(seen.files) == len(read) + sum(found.left_out.values()) + side_files
        assert found.skipped.get("names that begin with _ or .", 0) == len(seen.hidden)
        assert found.skipped.get("the run's own output", 0) == len(seen.own)
        event(f"{len(read)} read")


@settings(max_examples=150, deadline=None)
@given(st.lists(PATHS, max_size=10), st.permutations(["", "a", "b", "a/b", "*", "**"]))
def test_names_depend_on_no_other_input_within_the_outermost_and_on_no_order(paths, more):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "in"
        lay(root, [*paths, "z.tar"], [])
        inputs = [f"{root}/{m}".rstrip("/") for m in more]
        inputs = [i for i in inputs if "*" in i or is_folder(Path(i))]
        try:
            alone = finding.find_units([str(root)])
            together = finding.find_units(inputs)
        except UsageError as error:
            event(str(error).split(folder)[-1])
            return
        assert {(u.name, u.path, u.members) for u in together} == {
            (u.name, u.path, u.members) for u in alone
        }


@pytest.mark.parametrize("added", ["0.tar", "a/0.pq", "z/9.tar", "a.csv", "_x/1.tar"])
def test_no_name_changes_by_what_is_added(tmp_path: Path, added: str) -> None:
    lay(tmp_path / "in", ["a/1.tar", "b.parquet", "c.jpg", "d/e.jpg"], [])
    before = {(u.name, u.path) for u in finding.find_units([str(tmp_path / "in")])}
    lay(tmp_path / "in", [added], [])
    assert before <= {(u.name, u.path) for u in finding.find_units([str(tmp_path / "in")])}
