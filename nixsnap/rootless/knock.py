"""Whether the store door opens: run in a user namespace of the user's, it prints why not as JSON, else null.

unshare --user --map-root-user --mount python -m nixsnap.rootless.knock DOOR STORE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nixsnap.storedoor import client

if __name__ == "__main__":
    json.dump(client.why_closed(Path(sys.argv[2]), door=Path(sys.argv[1])), sys.stdout)
