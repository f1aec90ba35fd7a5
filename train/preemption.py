"""Signals that ask a job to leave: noted when they come, answered by all ranks together at the next step."""

import signal
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preemption:
    """Notes the first SIGTERM, SIGUSR1 or SIGINT; a second SIGINT interrupts at once, as anywhere."""

    def __init__(self) -> None:
        self.asked: str | None = None
        """Name of the signal that came, or None."""

    def remember(self) -> None:
        """Note a SIGUSR1 from now on, and one that was held back: it asks for a job that comes back by itself."""
        signal.signal(signal.SIGUSR1, self.note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def listen(self) -> None:
        """Note all from now on. Not before the ranks are together: joining waits, and must end when told to."""
        for number in ASKING:
            signal.signal(number, self.note)

    def leave(self) -> None:
        """The job is done: one that comes to this rank only now ends nothing any more."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number).name
