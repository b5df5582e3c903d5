# For people without flakes; nothing is fetched.
#
#     nix-build -A nixsnap                              # with the <nixpkgs> of NIX_PATH
#     (import ./nixsnap { inherit pkgs; }).nixsnap      # with another
#     (import ./nixsnap).nixosModules.default           # what needs no nixpkgs, without choosing one
let
  self = {
    overlays.default = import ./packaging/nix/overlay.nix;
    nixosModules.default.imports = [ ./packaging/nix/nixos-module.nix ];
    homeModules.default.imports = [ ./packaging/nix/home-module.nix ];

    # Makes the set callable; nix-build calls it too, with no arguments.
    __functor =
      _: { pkgs ? import <nixpkgs> { } }:
      let
        extended = pkgs.extend self.overlays.default;
      in
      {
        inherit (self) overlays nixosModules homeModules;
        inherit (extended) nixsnap nix-snapshotter;
      };
  };
in
self
