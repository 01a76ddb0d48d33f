"""A test that hangs fails where it stands."""

from __future__ import annotations

import signal
import threading

import pytest

from tests.conftest import TEST_SECONDS_MAX


def test_a_test_that_hangs_fails() -> None:
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0.01)
    assert 0 < left <= TEST_SECONDS_MAX
    with pytest.raises(pytest.fail.Exception, match="not over"):
        threading.Event().wait()
