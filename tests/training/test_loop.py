import pytest
import torch
from torch import nn

from earthgate_geo.errors import CancelledError, EarthgateError
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.training.loop import Schedule, WeightAverage, run


def _setup():
    parameter = nn.Parameter(torch.tensor([4.0]))
    average = WeightAverage({"p": parameter}, decay=0.9)
    return parameter, average, torch.optim.SGD([parameter], lr=0.1)


def test_training_goes_down_the_loss_and_reports_every_step():
    parameter, average, optimizer = _setup()
    schedule = Schedule(steps=20, learning_rate=0.1)

    losses = run(
        lambda _: parameter.square().sum(),
        optimizer,
        average,
        schedule=schedule,
        monitor=SilentMonitor(),
    )

    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_the_average_lies_between_start_and_end_and_is_swapped_in_and_out():
    parameter, average, optimizer = _setup()
    schedule = Schedule(steps=5, learning_rate=0.1)
    run(
        lambda _: parameter.square().sum(),
        optimizer,
        average,
        schedule=schedule,
        monitor=SilentMonitor(),
    )
    end = parameter.item()

    with average.applied():
        teacher = parameter.item()

    assert end < teacher < 4.0
    assert parameter.item() == end
    average.copy_to_model()
    assert parameter.item() == pytest.approx(teacher)


def test_a_restored_average_goes_on_as_the_one_that_was_kept():
    parameter, average, _ = _setup()
    for _ in range(3):
        with torch.no_grad():
            parameter.add_(1)
        average.update()
    other = WeightAverage({"p": parameter}, decay=0.9)

    other.load_state(average.state())
    with torch.no_grad():
        parameter.add_(1)
    average.update()
    other.update()

    assert torch.equal(other.state()["values"]["p"], average.state()["values"]["p"])
    assert other.state()["updates"] == 4


def test_a_loss_that_is_not_finite_stops_with_advice():
    parameter, average, optimizer = _setup()

    with pytest.raises(EarthgateError) as stop:
        run(
            lambda _: parameter.sum() * float("nan"),
            optimizer,
            average,
            schedule=Schedule(steps=3, learning_rate=0.1),
            monitor=SilentMonitor(),
        )

    assert str(stop.value) == (
        "training diverged at step 1 (loss nan). "
        "Try again with another --seed; the source model still maps the scene."
    )


def test_the_time_cap_ends_training_early():
    parameter, average, optimizer = _setup()

    losses = run(
        lambda _: parameter.square().sum(),
        optimizer,
        average,
        schedule=Schedule(steps=1000, learning_rate=0.1, seconds=0),
        monitor=SilentMonitor(),
    )

    assert len(losses) == 1


def test_a_monitor_can_cancel_between_two_steps():
    class Impatient(SilentMonitor):
        def update(self, done: int) -> None:
            if done == 2:
                raise CancelledError

    parameter, average, optimizer = _setup()
    with pytest.raises(CancelledError):
        run(
            lambda _: parameter.square().sum(),
            optimizer,
            average,
            schedule=Schedule(steps=9, learning_rate=0.1),
            monitor=Impatient(),
        )


def test_the_rate_warms_up_and_falls_to_nothing():
    schedule = Schedule(steps=100, learning_rate=1.0)

    assert schedule.rate(0) == pytest.approx(0.2)
    assert schedule.rate(5) == pytest.approx(1.0)
    assert schedule.rate(99) < 0.001


def test_a_run_that_goes_on_takes_the_steps_that_are_left_at_their_own_rates():
    _, average, optimizer = _setup()
    parameter = optimizer.param_groups[0]["params"][0]
    schedule, steps, told = Schedule(steps=6, learning_rate=0.1, done=4), [], []

    def loss(step):
        steps.append((step, optimizer.param_groups[0]["lr"]))
        return parameter.square().sum()

    losses = run(
        loss,
        optimizer,
        average,
        schedule=schedule,
        monitor=SilentMonitor(),
        after_step=lambda done, last: told.append((done, last)),
    )

    assert steps == [(4, schedule.rate(4)), (5, schedule.rate(5))]
    assert told == list(zip((5, 6), losses, strict=True))
