"""Where a number comes from, so that a reader knows how far to trust it."""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["measured", "read", "computed", "memory"]


@dataclass(frozen=True)
class Source:
    """The origin of one or several numbers.

    Attributes:
        text: the document, file or calculation the number comes from.
        mark: ``measured`` by an experiment of this project, ``read`` in the named document, ``computed`` from other numbers
            and found equal to the vendor's published figure, or from ``memory``: good for a rough estimate, to be verified.
    """

    text: str
    mark: Mark

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("Source.text: expected the name of a document or a calculation, got an empty string")

    def __str__(self) -> str:
        return f"{self.text} [{self.mark}]"
