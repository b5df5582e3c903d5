# lib.fileset, on lists of files.
{ hasSuffix }:

let
  inherit (builtins) attrNames concatMap filter isAttrs listToAttrs readDir;

  filesBelow =
    path:
    let
      entries = if isDirectory path then readDir path else null;
    in
    if entries == null then
      [ (toString path) ]
    else
      concatMap (
        name: if entries.${name} == "directory" then filesBelow (path + "/${name}") else [ (toString path + "/${name}") ]
      ) (attrNames entries);
  isDirectory = path: (readDir (dirOf path)).${baseNameOf path} == "directory";

  setOf = value: if isAttrs value then value else { files = filesBelow value; };
  indexOf = values: listToAttrs (map (name: { inherit name; value = true; }) values);
  parents = path: if path == "/" then [ ] else [ path ] ++ parents (dirOf path);
in
rec {
  maybeMissing = path: if builtins.pathExists path then setOf path else { files = [ ]; };
  unions = values: { files = concatMap (value: (setOf value).files) values; };
  difference =
    left: right:
    let
      gone = indexOf (setOf right).files;
    in
    { files = filter (file: !(gone ? ${file})) (setOf left).files; };
  fileFilter = predicate: path: {
    files = filter (
      file:
      predicate {
        name = baseNameOf file;
        hasExt = extension: hasSuffix ".${extension}" file;
      }
    ) (setOf path).files;
  };
  toSource =
    { root, fileset }:
    let
      wanted = indexOf (concatMap parents (setOf fileset).files);
    in
    {
      outPath = builtins.path {
        path = root;
        name = "source";
        filter = path: _: wanted ? ${path};
      };
    };
}
