# The packages and the functions that make them.
{
  lib,
  settings,
  system,
  crossSystem,
  self,
  buildPackages,
}:

let
  busybox = builtins.path {
    path = ./busybox;
    name = "busybox-static";
  };
  shell = "${busybox}/bin/sh";

  # A package with scripts in bin/, by name.
  scripts =
    name: programs:
    self.runCommand name { } ''
      mkdir -p $out/bin
      ${builtins.concatStringsSep "\n" (
        lib.mapAttrsToList (program: text: ''
          printf '#!${shell}\n%s\n' ${lib.escapeShellArg text} > $out/bin/${program}
          chmod +x $out/bin/${program}
        '') programs
      )}
    '';
in
{
  inherit lib system buildPackages;

  stdenv = {
    buildPlatform = {
      inherit system;
      canExecute = platform: platform.system == system;
    };
    hostPlatform.system = crossSystem;
  };
  go.GOARCH = { x86_64-linux = "amd64"; aarch64-linux = "arm64"; }.${crossSystem};

  callPackage =
    file: given:
    let
      function = import file;
    in
    function (builtins.intersectAttrs (builtins.functionArgs function) self // given);

  runCommand =
    name: variables: script:
    let
      derivation' = derivation (
        {
          inherit name system script;
          builder = shell;
          args = [ "-euc" "PATH=${busybox}/bin; . \"$scriptPath\"" ];
          passAsFile = [ "script" ] ++ variables.passAsFile or [ ];
        }
        // removeAttrs variables [ "passAsFile" "passthru" ]
      );
    in
    derivation' // variables.passthru or { } // { passthru = variables.passthru or { }; };

  writeText =
    name: text:
    self.runCommand name {
      inherit text;
      passAsFile = [ "text" ];
    } "cat $textPath > $out";

  writeTextDir =
    path: text:
    self.runCommand (baseNameOf path) {
      inherit text;
      passAsFile = [ "text" ];
    } "mkdir -p $(dirname $out/${path}); cat $textPath > $out/${path}";

  runtimeShell = shell;

  writeShellScript =
    name: text:
    self.runCommand name {
      text = "#!${shell}\n${text}";
      passAsFile = [ "text" ];
    } "cat $textPath > $out; chmod +x $out; ${shell} -n $out";

  writeShellScriptBin = name: text: self.runCommand name { } ''
    mkdir -p $out/bin
    cp ${self.writeShellScript name text} $out/bin/${name}
  '';

  # Nix lists a graph as records: a path, its derivation, how many references follow, and these.
  closureInfo =
    { rootPaths }:
    self.runCommand "closure-info"
      {
        exportReferencesGraph = builtins.concatLists (
          lib.imap0 (number: path: [ "graph-${toString number}" path ]) rootPaths
        );
      }
      ''
        mkdir $out
        cat graph-* > $out/registration
        awk '
          FNR == 1 { field = 0; skip = 0 }
          skip > 0 { skip--; next }
          field == 0 { print; field = 1; next }
          field == 1 { field = 2; next }
          { skip = $1; field = 0 }
        ' graph-* | sort -u > $out/store-paths
      '';

  buildEnv =
    {
      name,
      paths,
      pathsToLink ? [ "/" ],
    }:
    self.runCommand name { } ''
      for path in ${toString paths}; do
        for link in ${toString pathsToLink}; do
          mkdir -p $out$link
          ln -s $path$link/* $out$link/
        done
      done
    '';

  formats.toml = _: {
    type = lib.types.attrsOf lib.types.anything;
    # Keys of one level, and what is below them as inline tables.
    generate =
      name: value:
      let
        pair = key: item: "${builtins.toJSON key} = ${toml item}";
        toml =
          item:
          if builtins.isAttrs item then
            "{ ${builtins.concatStringsSep ", " (lib.mapAttrsToList pair item)} }"
          else if builtins.isList item then
            "[ ${builtins.concatStringsSep ", " (map toml item)} ]"
          else
            builtins.toJSON item;
      in
      self.writeText name (builtins.concatStringsSep "\n" (lib.mapAttrsToList pair value) + "\n");
  };

  # Those that pyproject.toml names. Of an application, `arguments` is what nixpkgs would have been given, and what is built
  # has the real programs and what postInstall makes.
  python3Packages =
    lib.genAttrs settings.pythonPackages (name: scripts name { })
    // {
      buildPythonApplication =
        arguments:
        self.runCommand "${arguments.pname}-${arguments.version}"
          {
            inherit (arguments) src;
            passthru = arguments.passthru // {
              inherit arguments;
            };
          }
          ''
            mkdir -p $out/bin
            for program in nixsnap nix-snapshotter nix2container; do
              printf '#!${shell}\nexec %s/%s "$@"\n' ${lib.escapeShellArg settings.programs} $program > $out/bin/$program
              chmod +x $out/bin/$program
            done

            substituteInPlace() {
              [ "$2" = --replace-fail ] && grep -qF -e "$3" "$1"
              old=$3 new=$4 awk '
                i = index($0, ENVIRON["old"]) { $0 = substr($0, 1, i - 1) ENVIRON["new"] substr($0, i + length(ENVIRON["old"])) }
                { print }
              ' "$1" > replaced
              cat replaced > "$1"
            }
            cp -r $src source
            cd source
            ${arguments.postInstall}
          '';
    };

  nix = scripts "nix" { nix-store = "echo nix-store"; };
  util-linux = scripts "util-linux" { nsenter = ''echo nsenter "$@"''; };
  redis = scripts "redis" { redis-server = ''echo redis-server "$@"''; };
  etcd = scripts "etcd" { etcd = ''echo etcd "$@"''; };
  bashInteractive = scripts "bash" { bash = ''exec ${shell} "$@"''; };
  coreutils = self.runCommand "coreutils" { } ''
    mkdir -p $out/bin
    for applet in cat id ls; do ln -s ${busybox}/bin/$applet $out/bin/; done
  '';
}
