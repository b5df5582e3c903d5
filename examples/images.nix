# Images of the usual kinds.
#
#     nix-build examples/images.nix -A redis
#     $(nix-build --no-out-link examples/images.nix -A load)/bin/copy-to-containerd
{
  pkgs ? import <nixpkgs> { overlays = [ (import ../.).overlays.default ]; },
}:

let
  inherit (pkgs.nix-snapshotter) buildImage;
in
rec {
  # One program, for a registry. Only its name goes there: nodes get redis from a binary cache.
  redis = buildImage {
    name = "registry.example.org/redis";
    tag = "latest";
    config = {
      entrypoint = [ "${pkgs.redis}/bin/redis-server" ];
      exposedPorts."6379/tcp" = { };
    };
  };

  # The same upon another image, with a shell and the usual tools in /bin.
  redis-with-shell = buildImage {
    name = "registry.example.org/redis-with-shell";
    fromImage = redis;
    copyToRoot = pkgs.buildEnv {
      name = "root";
      paths = [
        pkgs.bashInteractive
        pkgs.coreutils
        pkgs.redis
      ];
      pathsToLink = [ "/bin" ];
    };
    config = {
      entrypoint = [ "/bin/bash" ];
      env = [ "PATH=/bin" ];
    };
  };

  # Users by name: a file of an image is a store path with that file in it.
  redis-as-user = buildImage {
    name = "registry.example.org/redis-as-user";
    fromImage = redis;
    copyToRoot = pkgs.writeTextDir "etc/passwd" "redis:x:1000:1000::/:/noshell\n";
    config.user = "redis";
  };

  # Scripts that put an image where containers are started from: bin/copy-to-registry, …
  push = redis.copyToRegistry { imageTag = "7"; };

  # … bin/copy-to-containerd, here to where Kubernetes looks, …
  load = redis.copyToContainerd { namespace = "k8s.io"; };

  # … and here to a containerd that runs without root.
  load-rootless = redis.copyToContainerd { address = "$XDG_RUNTIME_DIR/containerd/containerd.sock"; };
}
