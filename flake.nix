{
  description = "A containerd snapshotter and image tool that understands the Nix store";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "aarch64-linux"
        "x86_64-linux"
      ];
      forAllSystems =
        make:
        nixpkgs.lib.genAttrs systems (
          system: make (nixpkgs.legacyPackages.${system}.extend self.overlays.default)
        );
    in
    {
      overlays.default = import ./packaging/nix/overlay.nix;
      nixosModules.default.imports = [ ./packaging/nix/nixos-module.nix ];
      homeModules.default.imports = [ ./packaging/nix/home-module.nix ];

      packages = forAllSystems (pkgs: {
        inherit (pkgs) nixsnap nix-snapshotter;
        default = pkgs.nixsnap;
      });

      apps = forAllSystems (
        pkgs:
        let
          app = name: {
            type = "app";
            program = "${pkgs.nixsnap}/bin/${name}";
          };
        in
        {
          default = app "nixsnap";
          nixsnap = app "nixsnap";
          nix2container = app "nix2container";
        }
      );

      # Built by `nix flake check`: that the package builds, and that it can make images of real programs.
      checks = forAllSystems (
        pkgs:
        {
          inherit (pkgs) nixsnap;
          declarative-k8s = import ./examples/declarative-k8s.nix { inherit pkgs; };
        }
        // import ./examples/images.nix { inherit pkgs; }
      );
    };
}
