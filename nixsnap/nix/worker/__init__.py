"""Nix's worker protocol: what `nix-daemon` speaks on its socket, or on its standard streams with `--stdio`."""
