"""The commands that change what is there without answering anything: publish and forget.

Both take the output folder for themselves while they work, as a run does. `app` is mounted into the console
script; errors leave as `LlavaBatchError`, for it to print.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llava_batch.cli.spread import SpreadLists

if TYPE_CHECKING:
    from llava_batch.driver.forgetting import Lost
    from llava_batch.storage import Location
    from llava_batch.write.ledger import Ledger
    from llava_batch.write.owner import Ownership
    from llava_batch.write.publish.change import LakeTable

app = typer.Typer(
    help="Publish the answers of a folder, or delete some.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_EARLIER_VERSIONS = (
    "Earlier versions of a table hold deleted rows until they are removed (Delta: VACUUM; Iceberg: "
    "expire the snapshots and delete their files)."
)


@app.command()
def publish(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="delta:URI or iceberg:CATALOG.NAMESPACE.TABLE.")
    ],
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the rows of another folder that it holds."),
    ] = False,
) -> None:
    """Bring the answers of a folder into a table of the lake, in one commit."""
    from llava_batch.write.owner import Ownership
    from llava_batch.write.publish.target import lake_table
    from llava_batch.write.reopen import reopen

    target, folder = lake_table(table), _answers_folder(out)
    _refuse_overlap(target, table, out)
    reopen(folder)  # refused before the folder is written to
    with Ownership(folder) as owner:
        _publish(reopen(folder), [target], owner, overwrite=overwrite)


@app.command(cls=SpreadLists, epilog=_EARLIER_VERSIONS)
def forget(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    inputs: Annotated[
        list[str], typer.Option("--input", help="All that the run reads, as it was given.")
    ],
    tables: Annotated[
        list[str] | None,
        typer.Option("--publish", help="Table of the lake that the rows go from too; repeatable."),
    ] = None,
    really: Annotated[
        bool, typer.Option("--delete", help="Delete them; without it they are only counted.")
    ] = False,
) -> None:
    """Delete the answers of images that the input no longer has."""
    from llava_batch.driver.forgetting import delete, lost
    from llava_batch.write.owner import Ownership
    from llava_batch.write.publish.target import lake_table
    from llava_batch.write.reopen import reopen

    targets, folder = [lake_table(text) for text in tables or ()], _answers_folder(out)
    for target, text in zip(targets, tables or (), strict=True):
        _refuse_overlap(target, text, out)
    ledger = reopen(folder)
    if not really:
        _tell(_found_lines(folder, lost(ledger, inputs)))
        _tell(["Nothing was deleted; give --delete to delete them."])
        return
    with Ownership(folder) as owner:
        ledger = reopen(folder)
        found = lost(ledger, inputs)
        _tell(_found_lines(folder, found))
        delete(ledger, found)
        if found.forgettings:
            _write_report_again(ledger, out)
            _tell([f"Deleted from {folder.shown}."])
        _publish(ledger, targets, owner)
    _tell(_what_holds_them_still(ledger, targets, out))


def _answers_folder(out: str) -> "Location":
    """The folder of the answers themselves: of `instruct`'s output, the one below it."""
    from llava_batch.answers.folder import ANSWERS, holds_answers
    from llava_batch.storage import locate

    folder = locate(out)
    below = folder.child(ANSWERS)
    return below if holds_answers(below) and not holds_answers(folder) else folder


def _refuse_overlap(table: "LakeTable", text: str, out: str) -> None:
    from llava_batch.driver.publishing import refuse_overlap

    refuse_overlap(table, text, [("OUT", out)])


def _publish(
    ledger: "Ledger",
    tables: "Sequence[LakeTable]",
    owner: "Ownership",
    *,
    overwrite: bool = False,
) -> None:
    from llava_batch.cli.terminal import published_line
    from llava_batch.driver.publishing import why_failed
    from llava_batch.errors import RunFailed
    from llava_batch.write.publish.change import PublishFailed
    from llava_batch.write.publish.publish import publish as bring

    said = {
        "llava_batch.fingerprint": ledger.fingerprint,
        "llava_batch.model": str(ledger.settings.get("model_name", ledger.settings["model"])),
    }
    for table in tables:
        try:
            done = bring(ledger, table, said=said, overwrite=overwrite, check=owner.check)
        except PublishFailed as error:
            raise RunFailed(why_failed(table, error)) from None
        _tell([published_line(done.to_json())])


def _found_lines(folder: "Location", found: "Lost") -> list[str]:
    from llava_batch.errors import counted

    lines = [
        f"{folder.shown}: {counted(found.rows, 'answer')} of images that the input no longer has"
        + (f", in {counted(len(found.forgettings), 'unit')}:" if found.forgettings else ".")
    ]
    for one in found.forgettings:
        all_of_it = ", all of it" if one.names is None else ""
        lines.append(f"  {one.record.unit}: {counted(one.rows, 'answer')}{all_of_it}")
    for names, why in (
        (found.elsewhere, "their input is still there and is not among --input; name it too"),
        (
            found.moved,
            "their input makes other units now; the next run answers those, and these go",
        ),
        (found.unknown, "their shard is damaged, and what it held cannot be told"),
    ):
        if names:
            first = counted(len(names), "unit")
            lines.append(f"Kept: the answers of {first}, {names[0]} first: {why}.")
    return lines


def _write_report_again(ledger: "Ledger", out: str) -> None:
    """The page without what is gone, unless it is one that a run leaves to `llava-batch report`."""
    from llava_batch.cli.terminal import MAX_REPORT_ROWS, write_report_of

    if 0 < sum(record.rows for record in ledger.records.values()) <= MAX_REPORT_ROWS:
        write_report_of(out)


def _what_holds_them_still(ledger: "Ledger", tables: "Sequence[LakeTable]", out: str) -> list[str]:
    """Where rows may be that are deleted in the folder."""
    from llava_batch.storage import locate
    from llava_batch.write.publish.note import published_tables

    lines = [_EARLIER_VERSIONS] if tables else []
    others = published_tables(ledger) - {table.shown for table in tables}
    lines += [
        f"{other} was not given with --publish and holds them still." for other in sorted(others)
    ]
    if ledger.out.path != locate(out).path:
        lines.append(f"{out}/instructions and what was exported were made before; make them again "
                     "with the same instruct command.")  # fmt: skip
    return lines


def _tell(lines: list[str]) -> None:
    if lines:
        print("\n".join(lines), file=sys.stderr)
