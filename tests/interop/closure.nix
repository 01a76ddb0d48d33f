# A closure for tests: 14 paths, 0.1 KB to 24 MB, references three levels deep, self-references,
# an executable, links, hashes in text and between zero bytes.
{ seed }:  # any text: another seed, another closure
let
  build = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    inherit seed;
    args = [ "-euc" script ];
  };
  noise = bytes: "head -c ${toString bytes} /dev/urandom";
  blob = name: bytes: build name ''
    mkdir -p $out/lib
    ${noise bytes} > $out/lib/${name}.bin
  '';
  large = blob "large" 24000000;
  middle = blob "middle" 3000000;
  leaves = map (n: build "leaf-${toString n}" ''
    mkdir -p $out/share
    ${noise 1000} | base64 > $out/share/text
    echo "self: $out" >> $out/share/text
    ln -s share/text $out/link
  '') [ 1 2 3 4 5 6 7 8 ];
  wrapper = build "wrapper" ''
    mkdir -p $out/bin
    printf '#!/bin/sh\nexec ${middle}/lib/middle.bin "$@"\n' > $out/bin/run
    printf '\0\0${builtins.substring 11 32 "${middle}"}\0\0' >> $out/bin/run
    chmod +x $out/bin/run
    ${noise 400000} | base64 > $out/text
    echo "${builtins.concatStringsSep " " leaves}" >> $out/text
  '';
  tool = build "tool" ''
    mkdir -p $out/a/b/c $out/empty
    echo "$out ${wrapper} ${large}" > $out/a/b/c/file
    ln -s ${wrapper}/bin/run $out/a/run
    : > $out/nothing
  '';
  single = build "single-file" "echo ${tool} > $out";
in
build "root" ''
  mkdir $out
  echo "${tool} ${single} ${large}" > $out/inputs
''
