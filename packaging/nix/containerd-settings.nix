# What containerd's configuration needs for Nix images.
#
# A setting of CRI is there under the names of both versions of the file, 2 and 3. Each containerd takes its own and
# leaves the other alone, so it does not matter which version the rest of a configuration is written in. The old name
# would not do: 2.x forgets CRI's snapshotter on the way from version 2 to 3 unless a table of runtimes is there too
# (migrateConfig in plugins/cri/images/plugin.go).
let
  cri = {
    snapshotter = "nix";
    # A layer's annotations say which store paths it has. containerd keeps them from the snapshotter by default.
    disable_snapshot_annotations = false;
  };
in
{
  proxy_plugins.nix = {
    type = "snapshot";
    # Under rootless containerd too, whose /run is its own, with a link to XDG_RUNTIME_DIR.
    address = "/run/nix-snapshotter/nix-snapshotter.sock";
    # Containers with user namespaces of their own; with containerd 1.7 set plain_idmap = "nixsnap" as well.
    capabilities = [ "remap-ids" ];
  };

  plugins = {
    "io.containerd.grpc.v1.cri".containerd = cri;
    "io.containerd.cri.v1.images" = cri;

    # For clients that leave pulling to containerd (`ctr image pull` of 2.x). The architecture is the host's.
    "io.containerd.transfer.v1.local".unpack_config = [
      {
        platform = "linux";
        snapshotter = "nix";
      }
    ];
  };
}
