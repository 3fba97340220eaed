"""Lets torch's threads sleep while they wait for each other; to be imported before torch.

Tests run several processes that compute, on as few as two cores. Threads that spin, as is usual, keep the others from
their work.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
