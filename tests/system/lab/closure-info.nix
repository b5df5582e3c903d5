# What nixpkgs' closureInfo makes, without nixpkgs: `store-paths` lists a path's whole closure, sorted, one to a line;
# `registration` is what `nix-store --load-db` reads.
{ tree, path }:
let
  bb = "${builtins.path { path = tree + "/busybox"; name = "busybox-static"; }}/bin/busybox";
in derivation {
  name = "closure-info";
  system = builtins.currentSystem;
  builder = bb;
  exportReferencesGraph = [ "graph" (builtins.storePath path) ];
  # The graph is a record per path: the path, its derivation, how many references follow, and these.
  args = [ "sh" "-c" ''
    set -eu
    ${bb} mkdir $out
    ${bb} awk '
      skip > 0 { skip--; next }
      field == 0 { print; field = 1; next }
      field == 1 { field = 2; next }
      { skip = $1; field = 0 }
    ' graph | ${bb} sort > $out/store-paths
    ${bb} cp graph $out/registration
  '' ];
}
