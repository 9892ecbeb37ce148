"""A command whose repeatable flags take several values at once: `--input A B` is `--input A --input B`."""

from typing import Any

from typer.core import TyperCommand


class SpreadLists(TyperCommand):
    """Lets a repeatable flag take several values at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {opt for param in self.params if param.multiple for opt in param.opts}
        spread: list[str] = []
        flag: str | None = None
        for arg in args:
            if arg.startswith("--"):  # one dash begins values: `--question '-5 or 5?'`
                flag = arg if arg in several else None
                spread += [] if flag else [arg]
            else:
                spread += [flag, arg] if flag else [arg]
        return super().parse_args(ctx, spread)
