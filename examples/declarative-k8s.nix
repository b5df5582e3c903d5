# A Kubernetes pod down to the files of its programs: the image of its container is a store path.
#
#     kubectl apply -f "$(nix-build examples/declarative-k8s.nix)/share/k8s"
#
# The kubelet needs nixsnap as its image service (docs/nix.md), and the node a Nix that can get the store path: from its
# own store, or from a binary cache that it was copied to.
{
  pkgs ? import <nixpkgs> { overlays = [ (import ../.).overlays.default ]; },
  # `etcd` is the other one.
  name ? "redis",
}:

let
  app =
    {
      redis = {
        program = "${pkgs.redis}/bin/redis-server";
        args = [ "--protected-mode" "no" ];
        port = 6379;
        nodePort = 30000;
      };
      etcd = {
        program = "${pkgs.etcd}/bin/etcd";
        args = [
          "--listen-client-urls=http://0.0.0.0:2379"
          "--advertise-client-urls=http://0.0.0.0:2379"
        ];
        port = 2379;
        nodePort = 30001;
      };
    }
    .${name};

  image = pkgs.nix-snapshotter.buildImage {
    inherit name;
    resolvedByNix = true;
    config.entrypoint = [ app.program ];
  };

  pod = {
    apiVersion = "v1";
    kind = "Pod";
    metadata = {
      inherit name;
      labels.app = name;
    };
    spec.containers = [
      {
        inherit name;
        inherit (image) image; # the same as "nix:0${image}"
        inherit (app) args;
        ports = [
          {
            name = "client";
            containerPort = app.port;
          }
        ];
      }
    ];
  };

  service = {
    apiVersion = "v1";
    kind = "Service";
    metadata.name = "${name}-service";
    spec = {
      type = "NodePort";
      selector.app = name;
      ports = [
        {
          name = "client";
          inherit (app) port nodePort;
        }
      ];
    };
  };

  jsonFile = file: value: pkgs.writeText file (builtins.toJSON value);

in
pkgs.runCommand "declarative-k8s" { } ''
  mkdir -p $out/share/k8s
  cp ${jsonFile "pod.json" pod} $out/share/k8s/${name}-pod.json
  cp ${jsonFile "service.json" service} $out/share/k8s/${name}-service.json
''
