"""Failures that pass are sat out, and every one of them is recorded."""

import pytest

from train.pipeline.patience import Patience


class Away(Exception):
    """What passes."""


class Gone(Exception):
    """What does not."""


@pytest.mark.parametrize("end", [None, Gone("for good")])
def test_a_failure_is_recorded_however_the_call_ends(end: Exception | None):
    patience = Patience(60.0, first_pause_s=0.01)
    failures = [Away("not now"), end]

    def action() -> str:
        failure = failures.pop(0)
        if failure:
            raise failure
        return "answer"

    def call() -> str:
        return patience.call(action, kind="remote", where="there", passes=lambda error: isinstance(error, Away))

    if end is None:
        assert call() == "answer"
    else:
        with pytest.raises(Gone):
            call()
    (event,) = patience.take_events()
    assert (event.event, event.where) == ("remote", "there")
    assert "not now" in event.what
    assert "try 2" in event.what
    assert end is None or "for good" in event.what
