"""nixsnap: a containerd snapshotter, image service and image tool that understand the Nix store."""

import os

__version__ = "0.1.0"

# gRPC's C core reads this when it loads, and at its default prints lines of its own to standard error, as of a
# connection that a restarting containerd closed.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
