{
  outputs = { self }: {
    inherit (import ./. { system = "x86_64-linux"; }) lib;
    legacyPackages = builtins.listToAttrs (
      map
        (system: {
          name = system;
          value = import ./. { inherit system; };
        })
        [ "aarch64-linux" "x86_64-linux" ]
    );
  };
}
