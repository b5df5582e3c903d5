# A derivation that a store only knows how to build: `dependency`, which it needs, and `name`, which runs `script`.
#
# `busybox` is a directory with bin/busybox. The scripts find busybox's applets on PATH.
{ busybox, name, script ? "", before ? "" }:
let
  box = builtins.path { path = busybox; name = "busybox-static"; };
  sh = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "${box}/bin/sh";
    args = [ "-euc" script ];
    PATH = "${box}/bin";
  };
  dependency = sh "${name}-needs" "${before}\nmkdir -p $out/share; echo built > $out/share/f";
in sh name ''
  echo "this is the builder of $name"
  ${script}
  mkdir -p $out/share; echo ${dependency} > $out/share/needs; echo built > $out/share/f
''
