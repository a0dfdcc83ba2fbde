"""Damaged input at every border: a clear sentence or the right result, never anything else."""

import pytest

from tests.fuzz.cases import GOOD
from tests.fuzz.run import BORDERS, jobs_of, run

CASES = dict.fromkeys(BORDERS, 120) | {"border_tables": 40}  # a page a case


@pytest.mark.parametrize("name", BORDERS)
def test_no_damage_goes_in_silently_or_ends_in_a_traceback(name):
    """Every case is refused in a sentence that names its file, or read rightly."""
    cases = CASES[name]
    results = list(run(jobs_of([name], cases, seed=0), workers=1))
    bad = [(number, *result) for (_, _, number), result in results if result.kind not in GOOD]
    assert len(results) == cases
    assert not bad, bad[:5]
    assert sum(result.kind == "refused" for _, result in results) > cases / 20
