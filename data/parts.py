"""One of several machines that divide a step among them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Machine `number` of `of`, from 1."""

    number: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether it does all of the work."""
        return self.of == 1

    @property
    def name(self) -> str:
        """For the names of files that are its own."""
        return f"{self.number}-of-{self.of}"

    @property
    def suffix(self) -> str:
        """The same behind a hyphen; nothing if it does all of the work."""
        return "" if self.whole else f"-{self.name}"

    def has(self, place: int) -> bool:
        """Whether a piece of the work, counted from 0, is this machine's."""
        return place % self.of == self.number - 1


ALL = Part(1, 1)
