# Two content-addressed derivations, one of which needs the other: small, and another for each seed.
{ seed }:
let
  build = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
  first = build "first" "echo ${seed} > $out";
in
build "second" "echo ${first} $out > $out"
