# nixsnap in a nixpkgs; `nix-snapshotter` is its name for those who come from the Go original.
final: _prev: {
  nixsnap = final.callPackage ./package.nix { };
  nix-snapshotter = final.nixsnap;
}
