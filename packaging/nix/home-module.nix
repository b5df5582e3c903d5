# Home Manager: a user's nix-snapshotter, beside the rootless containerd of nerdctl (containerd-rootless-setuptool.sh).
#
#     services.nix-snapshotter.rootless.enable = true;
#     virtualisation.containerd.rootless.nixSnapshotterIntegration = true;
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.nix-snapshotter.rootless;
  containerd = config.virtualisation.containerd.rootless;
  toml = pkgs.formats.toml { };

  # What `packaging/rootless/nixsnap-rootless run` does, with the store's programs. Views must be mounted where containerd
  # sees them: in the namespaces that rootlesskit made for it. nsenter executes the service in its own place, so systemd
  # knows it by its pid.
  start = pkgs.writeShellScript "nix-snapshotter-rootless" ''
    set -eu
    state=$XDG_RUNTIME_DIR/containerd-rootless
    if ! child=$(${pkgs.coreutils}/bin/cat "$state/child_pid"); then
      echo "rootless containerd is not running: $state/child_pid is not there" >&2
      exit 1
    fi

    # rootlesskit --detach-netns, and --net=host, leave the child in the host's network namespace, which it may not enter
    # again.
    net=--net
    [ ! "/proc/$child/ns/net" -ef /proc/self/ns/net ] || net=

    # Whoever fetches goes by the network namespace that was detached.
    export ROOTLESSKIT_STATE_DIR=$state

    # /run in there is rootlesskit's copy. A link in it makes the socket, which is in XDG_RUNTIME_DIR, known to containerd by
    # the name it has for root; it takes the place of the one that leads to the host's.
    exec ${pkgs.util-linux}/bin/nsenter --preserve-credentials --user --mount $net --target "$child" -- \
      ${pkgs.runtimeShell} -c '${pkgs.coreutils}/bin/ln -sfnT "$XDG_RUNTIME_DIR/nix-snapshotter" /run/nix-snapshotter && exec "$0" "$@"' \
      ${cfg.package}/bin/nixsnap serve --config ${cfg.configFile}
  '';
in
{
  options = {
    services.nix-snapshotter.rootless = {
      enable = lib.mkEnableOption "nix-snapshotter for rootless containerd";
    }
    // import ./service-options.nix {
      inherit lib pkgs;
      inherit (cfg) settings;
    };

    virtualisation.containerd.rootless = {
      nixSnapshotterIntegration = lib.mkEnableOption "Nix images in rootless containerd, by its configuration file";

      settings = lib.mkOption {
        type = toml.type;
        default = { };
        description = "The configuration file of rootless containerd, `$XDG_CONFIG_HOME/containerd/config.toml`.";
      };
    };
  };

  config = lib.mkMerge [
    (lib.mkIf cfg.enable {
      # A directory that the host knows by the same name: GC roots lie in it, and Nix's collector looks from outside.
      services.nix-snapshotter.rootless.settings.root = lib.mkDefault "${config.xdg.dataHome}/nix-snapshotter";

      systemd.user.services.nix-snapshotter = {
        Unit = {
          Description = "nixsnap, containerd's snapshotter for Nix images (rootless)";
          # It lives in containerd's namespaces, and has to be started again where these are new.
          After = [ "containerd.service" ];
          PartOf = [ "containerd.service" ];
          StartLimitIntervalSec = 0;
        };

        Service = {
          Type = "notify";
          Environment = "PATH=${lib.makeBinPath cfg.path}";
          ExecStart = "${start}";
          # Calls in flight may finish, and the daemon ends what runs for them; what else is left must stay: where rootfs
          # views are fuse-overlayfs's, containers run on its processes.
          KillMode = "process";
          TimeoutStopSec = 90;
          # Also until containerd-rootless has made its namespaces: its unit does not say when.
          Restart = "on-failure";
          RestartSec = 2;
        };

        Install.WantedBy = [ "containerd.service" ];
      };

      home.packages = [ cfg.package ];
    })

    (lib.mkIf containerd.nixSnapshotterIntegration {
      services.nix-snapshotter.rootless.enable = lib.mkDefault true;
      virtualisation.containerd.rootless.settings = {
        version = lib.mkDefault 2;
      }
      // import ./containerd-settings.nix;
      xdg.configFile."containerd/config.toml".source = toml.generate "containerd.toml" containerd.settings;
      home.sessionVariables.CONTAINERD_SNAPSHOTTER = lib.mkDefault "nix";
    })
  ];
}
