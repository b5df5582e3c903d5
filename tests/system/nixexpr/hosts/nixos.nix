# The options of NixOS that nixsnap's module sets, and what NixOS itself has containerd do.
{ lib, config, ... }:

let
  any = lib.mkOption {
    type = lib.types.attrsOf lib.types.anything;
    default = { };
  };
  packages = lib.mkOption {
    type = lib.types.listOf lib.types.package;
    default = [ ];
  };
in
{
  options = {
    virtualisation.containerd = {
      enable = lib.mkEnableOption "containerd";
      settings = any;
    };
    systemd = {
      inherit packages;
      services = any;
      sockets = any;
    };
    environment = {
      systemPackages = packages;
      variables = any;
    };
  };

  config.virtualisation.containerd.settings = lib.mkIf config.virtualisation.containerd.enable {
    version = 2;
    plugins."io.containerd.grpc.v1.cri".cni.bin_dir = lib.mkOptionDefault "/cni";
  };
}
