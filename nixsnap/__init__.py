"""nixsnap: a containerd snapshotter, image service and image tool that understand the Nix store."""

__version__ = "0.1.0"
