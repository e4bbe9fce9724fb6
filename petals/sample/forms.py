"""The bloom of each kind, built by the form that its look names."""

from functools import cache

from petals.flowers import CLASS_NAMES
from petals.sample import characters, rosettes
from petals.sample.florist import Bloom, Florist
from petals.sample.kinds import LOOKS
from petals.seeding import seed_for


@cache
def bloom(label: int, variety: int) -> Bloom:
    """Build the flower of a kind in one of its colours."""
    look = LOOKS[label]
    form = getattr(rosettes, look.form, None) or getattr(characters, look.form)
    return form(Florist(look, variety, seed_for("kind", CLASS_NAMES[label])))
