# A closure of `busybox`, `count` store paths of our own making and an application that refers to them all.
#
# The dependencies are plain source paths: Nix copies them into the store while it evaluates, without a build each, so
# that 5000 take seconds (as derivations 1000 take 13 s). `tree` holds busybox/ and deps/.
{ tree, name, script ? "" }:
let
  busybox = builtins.path { path = tree + "/busybox"; name = "busybox-static"; };
  bb = "${busybox}/bin/busybox";
  dependencies = map (dependency: builtins.path { path = tree + "/deps/${dependency}"; name = dependency; })
    (builtins.attrNames (builtins.readDir (tree + "/deps")));
in derivation {
  inherit name;
  system = builtins.currentSystem;
  builder = bb;
  # One environment string holds at most 128 KiB (MAX_ARG_STRLEN): 2300 store paths.
  passAsFile = [ "dependencies" ];
  inherit dependencies;
  args = [ "sh" "-c" ''
    set -eu
    ${bb} mkdir -p $out/bin
    ${bb} tr ' ' '\n' < $dependenciesPath > $out/dependencies
    for applet in ${busybox}/bin/*; do ${bb} ln -s $applet $out/bin/; done
    ${script}
  '' ];
}
