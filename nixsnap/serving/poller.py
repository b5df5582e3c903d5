"""Which of its pollers grpcio uses; to be said before grpc is imported, which reads it then."""

from __future__ import annotations

import os
from typing import Final

_EXPERIMENTS: Final = "GRPC_EXPERIMENTS"
_OLDER: Final = "-event_engine_listener"


def prefer_older_poller() -> None:
    """Have a server read its sockets on the thread that waits for calls.

    The newer poller, which is the default, has threads of its own for that, and so two switches of threads more for
    each message. Whoever set the variable himself (grpc's doc/environment_variables.md) knows better.
    """
    os.environ.setdefault(_EXPERIMENTS, _OLDER)
