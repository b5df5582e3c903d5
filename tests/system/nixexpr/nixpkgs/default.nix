# A nixpkgs of our own, on busybox: what nixsnap's Nix files use of the real one, by the same names and in the same shapes.
#
# Beside this file the tests put busybox/bin, with every applet; settings.json: where nixsnap's programs are (`programs`) and
# which Python packages there are (`pythonPackages`); and lib/, if they are given a real one.
{
  system ? builtins.currentSystem,
  overlays ? [ ],
  # Another than `system` makes it a cross nixpkgs.
  crossSystem ? system,
}:

let
  settings = builtins.fromJSON (builtins.readFile ./settings.json);
  lib = import (if builtins.pathExists ./lib then ./lib else ./lib.nix);

  extendedBy =
    overlays:
    let
      self = builtins.foldl' (prev: overlay: prev // overlay self prev) base overlays // {
        extend = overlay: extendedBy (overlays ++ [ overlay ]);
      };
      base = import ./packages.nix {
        inherit lib settings system crossSystem self;
        buildPackages = if crossSystem == system then self else import ./. { inherit system overlays; };
      };
    in
    self;
in
extendedBy overlays
