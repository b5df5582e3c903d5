# The options that the system's and a user's nix-snapshotter have in common.
{
  lib,
  pkgs,
  # The default of `configFile` is made of `settings`.
  settings,
}:

let
  toml = pkgs.formats.toml { };
in
{
  package = lib.mkOption {
    type = lib.types.package;
    # Works without the overlay too, which adds the functions that make images to a configuration's pkgs.
    default = pkgs.nixsnap or (pkgs.callPackage ./package.nix { });
    defaultText = lib.literalExpression "pkgs.nixsnap";
    description = "The nixsnap package to run.";
  };

  path = lib.mkOption {
    type = lib.types.listOf lib.types.package;
    default = [ pkgs.nix ];
    defaultText = lib.literalExpression "[ pkgs.nix ]";
    description = "Packages on the service's PATH: nix-store, and what an external builder needs.";
  };

  settings = lib.mkOption {
    type = toml.type;
    default = { };
    example = lib.literalExpression ''
      {
        readonly_store = true;
        image_service.containerd_address = "/run/k3s/containerd/containerd.sock";
      }
    '';
    description = "The configuration file as a Nix value. Unknown keys stop the service.";
  };

  configFile = lib.mkOption {
    type = lib.types.path;
    default = toml.generate "nix-snapshotter.toml" settings;
    defaultText = lib.literalMD "generated from `settings`";
    description = "The configuration file; one that is given takes the place of `settings`.";
  };
}
