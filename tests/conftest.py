"""One thread a worker: the suite runs a worker on each core, and threads that wait for one another cost both."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
