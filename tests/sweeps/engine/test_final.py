"""How a full training is stopped."""

import os
import signal

import pytest

from sweeps.engine import final

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handled():
    """The signals as a full training has them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    final.stop_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_a_signal_that_comes_twice_stops_it_once(handled, number):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    for again in SIGNALS[1:]:
        os.kill(os.getpid(), again)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
