"""Signals that ask a job to leave: noted when they come, answered by all ranks together at the next step."""

import signal
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preemption:
    """Notes the first SIGTERM, SIGUSR1 or SIGINT; a second SIGINT interrupts at once, as anywhere."""

    def __init__(self) -> None:
        self.asked: str | None = None
        """Name of the signal that came, or None."""

    def listen(self) -> None:
        """Note signals from now on. Not before the ranks are together: joining waits, and must end when told to."""
        for number in ASKING:
            signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
