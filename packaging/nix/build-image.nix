# Functions that make images of Nix closures, and put them where containers are started from.
{
  lib,
  runCommand,
  writeText,
  writeShellScriptBin,
  closureInfo,
  # The program that builds, pushes and loads.
  nix2container,
  # What images run on, as os/arch[/variant]; null is what the machine that builds them runs on.
  defaultPlatform ? null,
}:

let
  # One component of an image reference, as in github.com/distribution/reference.
  component = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*";

  # A name for the archive in the store. It becomes part of a reference, nix:0/nix/store/<hash>-nix-image-<name>.tar,
  # where not everything may stand that Nix allows in the name of a store path.
  storeNameOf =
    name:
    let
      base = lib.toLower (baseNameOf name);
      words = builtins.filter (word: builtins.isString word && word != "") (builtins.split "[^a-z0-9]+" base);
    in
    if builtins.match component base != null then base else builtins.concatStringsSep "-" words;

  # What an image of this config and these roots needs. The config names store paths, so Nix knows its closure; the
  # file itself is no part of it, because its text is in the image already and nothing in a container reads it.
  closureOf =
    {
      storeName,
      configFile,
      roots,
    }:
    runCommand "nix-closure-${storeName}" { preferLocalBuild = true; } ''
      mkdir $out
      grep -vxF ${configFile} ${closureInfo { rootPaths = [ configFile ] ++ roots; }}/store-paths \
        > $out/store-paths || [ $? -eq 1 ] # 1: no line is left, as of an image that only adds a config to its base
    '';

in
rec {
  # Build an image, as an OCI archive that `docker load` takes too.
  #
  # It holds none of the files of its store paths, only their names: nodes fetch them with Nix. The archive refers to
  # them in the store's eyes, so whoever has it (as a GC root, or by `nix copy`) has them all.
  buildImage =
    {
      # The image's name, with or without a registry. Of an image that is resolved by Nix it is only part of a store path.
      name,
      tag ? "latest",
      # Whether the image goes by the reference nix:0/nix/store/….tar, which names this very archive: a kubelet with
      # nixsnap as its image service has Nix fetch it, and no registry is involved.
      resolvedByNix ? false,
      # An archive to build upon, of Docker's kind or OCI's, Nix image or not.
      fromImage ? null,
      # A derivation, or a list of them, whose content shows at /, as symbolic links.
      copyToRoot ? null,
      # What a container runs with: the `config` object of an OCI image config. Names are taken in camel case of either
      # kind. Store paths that occur in it are in the image.
      config ? { },
      # How the layer names its closure: "closure", "legacy" (for snapshotters that do not know the other) or "both".
      annotations ? "closure",
      # What the image runs on, as os/arch[/variant].
      platform ? defaultPlatform,
    }:
    let
      storeName = storeNameOf name;
      reference = "${lib.toLower name}:${tag}";

      roots = if copyToRoot == null then [ ] else lib.toList copyToRoot;
      configFile = writeText "config-${storeName}.json" (builtins.toJSON config);
      rootsFile = writeText "copy-to-root-${storeName}.json" (builtins.toJSON (map (root: "${root}") roots));
      closure = closureOf { inherit storeName configFile roots; };

      flags =
        [ "--closure" "${closure}" "--config" "${configFile}" "--copy-to-root" "${rootsFile}" ]
        ++ [ "--annotations" annotations ]
        ++ lib.optionals (fromImage != null) [ "--from-image" "${fromImage}" ]
        ++ lib.optionals (platform != null) [ "--platform" platform ]
        # Without a name the archive takes that of its own store path, which is known only where it is built.
        ++ lib.optionals (!resolvedByNix) [ "--ref" reference ];

      image =
        runCommand "nix-image-${storeName}.tar"
          {
            preferLocalBuild = true; # it takes less time than asking another machine to
            passthru = {
              inherit name tag closure;
              # For pod specs and `ctr run`.
              image = if resolvedByNix then "nix:0${image}" else reference;
              copyToRegistry = copyToRegistry image;
              copyToContainerd = copyToContainerd image;
            };
          }
          ''
            ${nix2container} build ${lib.escapeShellArgs flags} "$out"
          '';
    in
    image;

  # A script bin/copy-to-registry that pushes an image. What it needs to log in is where Docker has it.
  #
  # The values stand in double quotes, so that a shell variable in them is expanded when the script runs.
  copyToRegistry =
    image:
    {
      imageName ? lib.toLower image.name,
      imageTag ? image.tag,
      plainHTTP ? false,
    }:
    writeShellScriptBin "copy-to-registry" ''
      exec ${nix2container} push --ref "${imageName}:${imageTag}"${lib.optionalString plainHTTP " --plain-http"} "$@" ${image}
    '';

  # A script bin/copy-to-containerd that loads an image, with its store paths where they are not there yet.
  #
  # Left out, address and namespace are containerd's own defaults, or $CONTAINERD_ADDRESS and $CONTAINERD_NAMESPACE. The
  # values stand in double quotes, so that "$XDG_RUNTIME_DIR/containerd/containerd.sock" means what it says.
  copyToContainerd =
    image:
    {
      address ? null,
      namespace ? null,
    }:
    let
      addressFlag = lib.optionalString (address != null) " --address \"${address}\"";
      namespaceFlag = lib.optionalString (namespace != null) " --namespace \"${namespace}\"";
    in
    writeShellScriptBin "copy-to-containerd" ''
      exec ${nix2container}${addressFlag}${namespaceFlag} load "$@" ${image}
    '';
}
