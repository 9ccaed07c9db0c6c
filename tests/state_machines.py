"""How long the state machines run: the same calls every time, or FASTREG_STATES random runs."""

import os

import hypothesis

RUNS = os.environ.get("FASTREG_STATES")


def settings(runs, calls):
    """Return the settings of a machine that by default takes so many runs of so many calls."""
    return hypothesis.settings(
        derandomize=RUNS is None,
        max_examples=int(RUNS or runs),
        stateful_step_count=calls if RUNS is None else 60,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
