"""Nix, as nixsnap needs it: store paths, realising closures, and roots against garbage collection."""
