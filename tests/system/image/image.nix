# An image archive built where buildImage builds it: in a derivation, whose output is the archive.
{ program, top, info }:
let app = builtins.storePath top;
in derivation {
  name = "nix-image-mixed.tar";
  system = builtins.currentSystem;
  builder = "${app}/bin/sh";
  info = builtins.storePath info;
  args = [ "-c" ''
    set -eu
    echo '{ "entrypoint": ["${app}/bin/sh"] }' > config.json
    ${program} build --config config.json --closure $info/store-paths $out
  '' ];
}
