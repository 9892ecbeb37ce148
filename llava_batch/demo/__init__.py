"""The embedded demo model and the drawn scenes that it was trained on.

Importing this package loads neither torch nor Pillow. The model is for tests and demonstrations:
it knows coloured shapes on a plain background and nothing else; real work wants a real checkpoint.
"""

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the shipped checkpoint, in the form `from_pretrained` reads."""
    return Path(__file__).parent / "model"
