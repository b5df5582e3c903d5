"""OCI images: models, archives, base images, and the nix layer."""
