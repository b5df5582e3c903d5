# The part of nixpkgs' lib that nixsnap's Nix files use.
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elemAt
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFunction
    isList
    isString
    length
    listToAttrs
    mapAttrs
    ;
in
rec {
  toList = value: if isList value then value else [ value ];
  optionals = condition: list: if condition then list else [ ];
  optionalString = condition: text: if condition then text else "";
  imap0 = function: list: genList (number: function number (elemAt list number)) (length list);
  mapAttrsToList = function: set: map (name: function name set.${name}) (attrNames set);
  genAttrs = names: make: listToAttrs (map (name: { inherit name; value = make name; }) names);

  letters = "abcdefghijklmnopqrstuvwxyz";
  characters = text: genList (number: builtins.substring number 1 text) (builtins.stringLength text);
  toLower = builtins.replaceStrings (characters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (characters letters);
  hasSuffix =
    suffix: text:
    let
      start = builtins.stringLength text - builtins.stringLength suffix;
    in
    start >= 0 && builtins.substring start (-1) text == suffix;
  escapeShellArg = value: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString value)}'";
  escapeShellArgs = values: concatStringsSep " " (map escapeShellArg values);
  makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);

  importTOML = file: builtins.fromTOML (builtins.readFile file);
  licenses.mit.spdxId = "MIT";
  platforms.linux = [ "x86_64-linux" "aarch64-linux" ];

  fileset = import ./fileset.nix { inherit hasSuffix; };

  # --- options ---

  mkOption = option: option // { _type = "option"; };
  mkEnableOption = what: mkOption {
    type = types.bool;
    default = false;
    description = "Whether to enable ${what}.";
  };
  literalExpression = text: { _type = "literalExpression"; inherit text; };
  literalMD = text: { _type = "literalMD"; inherit text; };

  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkDefault = mkOverride 1000;
  mkOptionDefault = mkOverride 1500;
  mkForce = mkOverride 50;

  types =
    let
      same = name: check: {
        inherit name check;
        merge = place: values:
          if all (value: value == head values) values then head values else throw "${place}: conflicting definitions";
      };
      # Merges sets name by name, and takes mkIf and its kin inside them for what they are.
      deep = place: values:
        if all (value: isAttrs value && !isPackage value) values then
          let
            definitions = map (value: { active = true; priority = 100; inherit value; }) values;
            isDefined = name: builtins.any (definition: definition.active) (below name definitions);
          in
          genAttrs (filter isDefined (attrNames (foldl' (names: value: names // value) { } values))) (
            name: valueOf types.anything "${place}.${name}" (below name definitions)
          )
        else if all isList values then
          concatLists values
        else
          types.str.merge place values;
      isPackage = value: isAttrs value && value.type or "" == "derivation";
    in
    {
      bool = same "boolean" isBool;
      str = same "string" isString;
      path = same "path" (value: isPackage value || builtins.substring 0 1 (toString value) == "/");
      package = same "package" isPackage;
      anything = {
        name = "anything";
        check = _: true;
        merge = deep;
      };
      attrsOf = _: {
        name = "attribute set";
        check = isAttrs;
        merge = deep;
      };
      listOf = item: {
        name = "list of ${item.name}";
        check = value: isList value && all item.check value;
        merge = _: concatLists;
      };
    };

  # --- modules ---

  # A definition is { active, priority, value }. Conditions stay unevaluated until the option's value is wanted, since
  # they are made of other options' values.
  pushDown =
    value:
    let
      kind = if isAttrs value then value._type or "" else "";
    in
    if kind == "merge" then
      concatMap pushDown value.contents
    else if kind == "if" then
      map (definition: definition // { active = value.condition && definition.active; }) (pushDown value.content)
    else if kind == "override" then
      map (definition: definition // { inherit (value) priority; }) (pushDown value.content)
    else
      [ { active = true; priority = 100; inherit value; } ];

  below =
    name:
    concatMap (
      outer:
      if outer.value ? ${name} then
        map (inner: inner // { active = outer.active && inner.active; }) (pushDown outer.value.${name})
      else
        [ ]
    );

  valueOf =
    type: place: definitions:
    let
      active = filter (definition: definition.active) definitions;
      strongest = foldl' (best: definition: if definition.priority < best then definition.priority else best) 9999 active;
      values = map (definition: definition.value) (filter (definition: definition.priority == strongest) active);
    in
    if values == [ ] then
      throw "${place} is used, but has no value"
    else if !(all type.check values) then
      throw "${place} is no ${type.name}"
    else
      type.merge place values;

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      arguments = specialArgs // { inherit config lib; };
      lib = import ./lib.nix;

      load =
        module:
        let
          content = if isAttrs module || isFunction module then module else import module;
          set = if isFunction content then content arguments else content;
          isExplicit = set ? config || set ? options;
        in
        concatMap load (set.imports or [ ])
        ++ [
          {
            options = set.options or { };
            config = if isExplicit then set.config or { } else removeAttrs set [ "imports" ];
          }
        ];

      isOption = value: value._type or "" == "option";
      merged =
        left: right:
        left
        // mapAttrs (
          name: value:
          if !(left ? ${name}) then
            value
          else if isOption value || isOption left.${name} then
            throw "option ${name} is declared twice"
          else
            merged left.${name} value
        ) right;

      loaded = concatMap load modules;
      options = foldl' merged { } (map (module: module.options) loaded);
      definitions = concatMap (module: pushDown module.config) loaded;

      configOf =
        place: options: definitions:
        mapAttrs (
          name: option:
          let
            here = below name definitions;
            fallback = if option ? default then pushDown (mkOptionDefault option.default) else [ ];
          in
          if isOption option then
            valueOf option.type "${place}${name}" (here ++ fallback)
          else
            configOf "${place}${name}." option here
        ) options;

      # What is defined without an option for it: the real module system refuses it.
      undeclaredOf =
        place: options: definitions:
        concatMap (
          definition:
          concatMap (
            name:
            if !(options ? ${name}) then
              [ "${place}${name}" ]
            else if isOption options.${name} then
              [ ]
            else
              undeclaredOf "${place}${name}." options.${name} (below name [ definition ])
          ) (if definition.active then attrNames definition.value else [ ])
        ) definitions;

      config = configOf "" options definitions;
    in
    {
      inherit config options;
      undeclared = undeclaredOf "" options definitions;
    };
}
