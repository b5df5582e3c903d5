# The options of Home Manager that nixsnap's module sets.
{ lib, ... }:

let
  any = lib.mkOption {
    type = lib.types.attrsOf lib.types.anything;
    default = { };
  };
in
{
  options = {
    systemd.user.services = any;
    xdg.dataHome = lib.mkOption {
      type = lib.types.str;
      default = "/home/u/.local/share";
    };
    xdg.configFile = any;
    home = {
      packages = lib.mkOption {
        type = lib.types.listOf lib.types.package;
        default = [ ];
      };
      sessionVariables = any;
    };
  };
}
