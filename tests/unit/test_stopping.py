"""Where a run ends: by steps, epochs and tokens of its plan, and before by time or for want of a better loss."""

import pytest

from tests.unit.test_plan import make_plan
from train.config_schema import StopSection
from train.stopping import Stopping, earlier_rules, last_step, steps_of_tokens


@pytest.mark.parametrize("last_batch", ["short", "drop", "wrap"])
@pytest.mark.parametrize("step", [0, 3, 40])
def test_the_tokens_of_a_run_are_reached_by_its_last_step(last_batch: str, step: int) -> None:
    plan = make_plan(last_batch=last_batch)
    held = [sum(pack.tokens for pack in plan.batch(number).packs) for number in range(step + 1)]
    assert plan.locate(40)[0] > 0  # not within the first epoch
    assert steps_of_tokens(plan, sum(held)) == step + 1
    assert steps_of_tokens(plan, sum(held) - 1) == step + 1
    assert steps_of_tokens(plan, sum(held) + 1) == step + 2
    assert steps_of_tokens(plan, 10**15, most=step + 2) == step + 2


def test_the_first_rule_counts_and_is_named() -> None:
    plan = make_plan()
    epochs = plan.steps_until(1) + -(-plan.steps_in(1) // 2)
    assert last_step(plan, StopSection(epochs=1.5)).steps == epochs
    assert last_step(plan, StopSection(epochs=1.5, steps=epochs - 1)).rule == f"stop.steps = {epochs - 1}"
    assert last_step(plan, StopSection(epochs=1.5, steps=epochs + 1)).rule == "stop.epochs = 1.5"
    first = sum(pack.tokens for pack in plan.batch(0).packs)
    found = last_step(plan, StopSection(epochs=1.5, tokens=first + 1))
    assert (found.steps, found.rule) == (2, f"stop.tokens = {first + 1}")


def test_patience_counts_evaluations_without_a_lower_loss_across_starts() -> None:
    settings = StopSection(steps=100, patience=3)
    stopping = Stopping(settings)
    for loss in (2.0, 1.0, 1.5, 1.0):
        stopping.measured(loss)
    assert stopping.reason() is None
    again = Stopping(settings, stopping.state())
    again.measured(None)
    assert again.reason() == "stop.patience = 3: 3 evaluations without a lower loss, the least is 1.0000"
    better = Stopping(settings, stopping.state())
    for loss in (0.9, 1.0, 1.0):
        better.measured(loss)
    assert better.reason() is None
    assert Stopping(StopSection(steps=100), again.state()).reason() is None


def test_hours_count_across_starts() -> None:
    settings = StopSection(steps=100, hours=0.5)
    stopping = Stopping(settings)
    stopping.trained(1000.0)
    stopping.trained(1200.0)
    again = Stopping(settings, stopping.state())
    again.trained(599.0)
    assert again.reason() is None
    again.trained(600.0)
    assert again.reason() == "stop.hours = 0.5: trained for 0.5 hours"
    assert earlier_rules(settings) == "stop.hours = 0.5"
    assert earlier_rules(StopSection(steps=1)) == ""
