"""Came: which rows of one unit have come in, in a byte an image."""


class Came:
    """The images of a unit, by their place in it, and of those that came in part, which rows."""

    def __init__(self) -> None:
        self.num_whole = 0
        """Images of which all rows are there."""
        self._whole = bytearray()
        self._positions: dict[int, set[int]] = {}

    @property
    def num_images(self) -> int:
        """Images of which at least one row is there."""
        return self.num_whole + len(self._positions)

    def take(self, ordinal: int, position: int, siblings: int) -> bool:
        """Whether this row of the image at `ordinal`, which has so many, has not come before.

        An image of which nothing was asked has one row, of no siblings.
        """
        if ordinal < len(self._whole) and self._whole[ordinal]:
            return False
        positions = self._positions.setdefault(ordinal, set())
        if position in positions:
            return False
        positions.add(position)
        if len(positions) >= siblings:
            del self._positions[ordinal]
            self._whole.extend(bytes(max(0, ordinal + 1 - len(self._whole))))
            self._whole[ordinal] = 1
            self.num_whole += 1
        return True
