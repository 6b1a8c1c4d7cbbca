"""Whether a run may take its time: `dev.py soak` does, `dev.py test` keeps to a few minutes.

What differs is how many combinations of a database, a claim, a world and a client a test is run
with: by default each of these is there, in the long run each with each.
"""

import os

__all__ = ["THOROUGH"]

THOROUGH = os.environ.get("SLOTCACHE_TEST_ROUNDS", "1") != "1"
