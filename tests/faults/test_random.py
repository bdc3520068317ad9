"""Seeded random runs (chaos.py): any violation of the promise is a failure, and the seed replays its faults."""
import os
import random

import pytest

import chaos

FULL_JOBS, FULL_SEEDS = 1000, range(1, 6)


def judge(folder, postgres, seed, **sizes):
    figures, violations, failures = chaos.run(folder, postgres, seed, **sizes)
    print(figures)
    told = f"seed {seed}; replay: tests/faults/chaos.py --seed {seed}; history in {folder}"
    assert not violations, f"{told}\n" + "\n".join(map(str, violations[:20]))
    assert not failures, f"{told}\n" + "\n".join(failures[:20])
    assert figures["jobs"] == sizes["jobs"]
    # How many fit in depends on how long a stopped server takes to end.
    assert sum(figures["faults"].values()) >= 1, figures


def test_random_faults(tmp_path, own_postgres):
    """A short one, with a new seed each time (QUANTRY_FAULT_SEED: this one)."""
    seed = int(os.environ.get("QUANTRY_FAULT_SEED") or random.SystemRandom().randrange(1 << 31))
    judge(tmp_path / "fleet", own_postgres, seed, jobs=40, workers=2, pause_s=0.7)


@pytest.mark.full
@pytest.mark.parametrize("seed", FULL_SEEDS)
def test_random_faults_long(tmp_path, own_postgres, seed):
    judge(tmp_path / "fleet", own_postgres, seed, jobs=FULL_JOBS, servers=3, workers=4)
