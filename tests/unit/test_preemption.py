"""Signals that ask a job to leave, and that may come before it can."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from train.preemption import Preemption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What this process does at these signals is as it was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_was_held_back_is_noted_as_soon_as_it_can_be() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    # To this thread alone: another one of the process may not hold it back.
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    preemption = Preemption()
    preemption.remember()
    assert preemption.asked == "SIGUSR1"


def test_the_first_signal_counts_and_a_second_interrupt_interrupts() -> None:
    preemption = Preemption()
    preemption.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert preemption.asked == "SIGTERM"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_when_all_is_done_ends_nothing() -> None:
    preemption = Preemption()
    preemption.listen()
    preemption.leave()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert preemption.asked is None
