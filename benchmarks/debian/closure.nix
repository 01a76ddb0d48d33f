# One store path for each part of each Debian package in packages.json, and one that names them all.
# Dependencies between packages become references between their main parts.
let
  packages = builtins.fromJSON (builtins.readFile ./packages.json);
  builder = builtins.toFile "builder.sh" (builtins.readFile ./builder.sh);
  build = part: name: values:
    derivation ({
      inherit part;
      name = name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ builder ];
      dependencies = [ ];
      interpreter = "";
    } // values);
  main = builtins.mapAttrs (name: package:
    build "main" "${name}-${package.version}" {
      inherit (package) tree sha256;
      dependencies = map (other: main.${other}) package.dependencies;
      interpreter = if package.interpreter == null then "" else main.${package.interpreter};
    }) packages;
  beside = builtins.concatMap (name:
    map (part:
      build part "${name}-${packages.${name}.version}-${part}" {
        inherit (packages.${name}) tree sha256;
      }) packages.${name}.parts) (builtins.attrNames packages);
in
build "all" "system-path" { dependencies = builtins.attrValues main ++ beside; }
