"""The learning rate, and what becomes of it when the number of steps is changed during training.

A plan is a pair [from_step, steps]: from step `from_step` on, `steps` steps were planned in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmtok.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of update `step`, from 0: linear warm-up, then linear decay to 0 at `config.steps`.

    It depends on the step and the number of steps alone. A training whose number of steps is
    changed goes on at the rate that the new number plans for the current step, and decays from
    there to 0 at the new end; a finished warm-up is not repeated. The steps before were made at the
    rates of the old plan, so the weights are not those of the new number planned from the start.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * (1 - step / config.steps)


def replan(planned: list[list[int]], step: int, steps: int) -> list[list[int]]:
    """Add a plan of `steps` steps from `step` on; a plan by which no step was made is dropped."""
    used = [plan for plan in planned if plan[0] < step]
    if not used:
        used = [[0, steps]]
    if used[-1][1] == steps:
        return used
    return [*used, [step, steps]]


def schedule_text(config: TrainConfig, planned: Sequence[Sequence[int]]) -> str:
    """What the learning rate did and will do in a training whose number of steps was changed.

    planned: at least two plans, as `Trainer.planned` has them.
    """
    (_, steps_before), (step, steps) = planned[-2:]
    rate_before = learning_rate(replace(config, steps=steps_before), step - 1)
    goes_on = "ends"
    if step < steps:
        goes_on = f"goes on at {learning_rate(config, step):.3g} and falls"
    return (
        f"trained on from step {step}: {steps_before} steps were planned before, now {steps}; the"
        f" learning rate, {rate_before:.3g} at step {step}, {goes_on} linearly to 0 at step"
        f" {steps}, without a second warm-up, so this is not what {steps} steps planned from the"
        " start would give"
    )
