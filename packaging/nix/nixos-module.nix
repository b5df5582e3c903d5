# NixOS: the system's nix-snapshotter, and containerd set up for it.
#
#     services.nix-snapshotter.enable = true;
#     virtualisation.containerd = { enable = true; nixSnapshotterIntegration = true; };
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.nix-snapshotter;
  containerd = config.virtualisation.containerd;
in
{
  options = {
    services.nix-snapshotter = {
      enable = lib.mkEnableOption "nix-snapshotter, containerd's snapshotter for Nix images";
    }
    // import ./service-options.nix {
      inherit lib pkgs;
      inherit (cfg) settings;
    }
    // {
      storeDoor.enable = lib.mkEnableOption ''
        the store door: users' rootless daemons get a read-only mount of the store that shows root's files as owned by
        root in their namespaces, too (docs/security.md)
      '';
    };

    virtualisation.containerd.nixSnapshotterIntegration = lib.mkEnableOption ''
      Nix images in containerd: nix-snapshotter becomes the snapshotter of Kubernetes, and that of `ctr` and `nerdctl`
      unless they are told another
    '';
  };

  config = lib.mkMerge [
    (lib.mkIf cfg.enable {
      # The unit is the package's own, with the reasons for its settings beside them; here is what only NixOS knows.
      systemd.packages = [ cfg.package ];
      systemd.services.nix-snapshotter = {
        inherit (cfg) path;
        wantedBy = [ "multi-user.target" ];
        serviceConfig.ExecStart = [
          "" # in place of the unit's own, not beside it
          "${cfg.package}/bin/nixsnap serve --config ${cfg.configFile}"
        ];
      };

      environment.systemPackages = [ cfg.package ];
    })

    # It is of use without the system's own service as well.
    (lib.mkIf cfg.storeDoor.enable {
      systemd.packages = [ cfg.package ];
      systemd.sockets.nixsnap-store-door.wantedBy = [ "sockets.target" ];
    })

    (lib.mkIf (containerd.enable && containerd.nixSnapshotterIntegration) {
      services.nix-snapshotter.enable = lib.mkDefault true;
      virtualisation.containerd.settings = {
        version = lib.mkDefault 2;
      }
      // import ./containerd-settings.nix;
      environment.variables.CONTAINERD_SNAPSHOTTER = lib.mkDefault "nix";
    })
  ];
}
