"""Before anything imports Ray: it reads its environment once a process, and the embedded Ray wants a token."""

from __future__ import annotations

import os

from trainer.launch_ray import QUIET_ENVIRONMENT

for name, value in QUIET_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
