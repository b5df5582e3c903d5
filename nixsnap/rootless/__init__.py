"""What a plain user's machine needs for rootless containers with Nix images, and finding out whether it has it."""
