"""Seeds that depend on names alone."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from petals.seeding import seed_for

parts = st.lists(st.one_of(st.integers(), st.text()), max_size=4).map(tuple)


def test_known_seeds():
    """Recorded: they are part of every result, and must never change."""
    assert seed_for(1, "train", 0) == 6829224237804602901
    assert seed_for("été") == 1120169153872000334


def test_another_process_gives_the_same():
    code = "from petals.seeding import seed_for; print(seed_for(1, 'view', 'a', 2))"
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert int(done.stdout) == seed_for(1, "view", "a", 2)


@given(parts, parts)
def test_a_seed_has_63_bits_and_belongs_to_its_parts(one: tuple, other: tuple):
    assert 0 <= seed_for(*one) < 2**63
    assert (seed_for(*one) == seed_for(*other)) == (one == other)


def test_bounds_and_kinds_of_the_parts_matter():
    assert len({seed_for(1, 23), seed_for(12, 3), seed_for("1", 23), seed_for("1", "23"), seed_for(123)}) == 5
