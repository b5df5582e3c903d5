"""The domain: snapshots as containerd knows them, with nix layers and the rootfs views that show them."""
