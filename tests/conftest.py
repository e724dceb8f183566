"""One profile for Hypothesis: the same examples on every machine, and no deadline (timings are no tests)."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers share the machine
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ci")
