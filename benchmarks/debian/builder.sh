# One part ($part) of an unpacked package ($tree) becomes a store path, as a Nix package would look:
# binaries find their libraries by RPATH, scripts their interpreter, and nix-support names both.
export PATH=/usr/bin:/bin LC_ALL=C
umask 022
mkdir -p "$out"

take() { # SOURCE TARGET: add what the package has in one directory
  if [ -d "$tree/$1" ]; then
    mkdir -p "$out/$2"
    cp -a "$tree/$1/." "$out/$2/"
  fi
}

library_path() {
  for path in "$out" $dependencies; do
    printf '%s/lib/x86_64-linux-gnu:%s/lib:' "$path" "$path"
  done
}

link_to_store() { # FILE
  case $(head -c 4 "$1" | od -An -tx1 | tr -d ' \n') in
  7f454c46)
    if readelf -d "$1" 2>/dev/null | grep -q NEEDED; then
      patchelf --set-rpath "$run_path" "$1" 2>/dev/null
    fi
    ;;
  2321*)
    [ -z "$interpreter" ] || sed -i "1s|^#! */usr/bin/|#!$interpreter/bin/|" "$1"
    sed -i "s|/usr/share/|$out/share/|g" "$1"
    ;;
  esac
}

case $part in
main)
  for directory in usr/bin usr/sbin bin sbin usr/games; do take "$directory" bin; done
  for directory in usr/lib lib lib64; do take "$directory" lib; done
  for directory in libexec include; do take "usr/$directory" "$directory"; done
  take etc etc
  for directory in "$tree"/usr/share/*; do
    name=${directory##*/}
    case $name in
    man | info | doc | locale | '*') ;;
    *) take "usr/share/$name" "share/$name" ;;
    esac
  done
  chmod -R u+w "$out"
  run_path=$(library_path)
  find "$out" -type f | sort | while read -r file; do link_to_store "$file"; done
  mkdir -p "$out/nix-support"
  echo "$dependencies" >"$out/nix-support/propagated-build-inputs"
  ;;
man) for name in man info; do take "usr/share/$name" "share/$name"; done ;;
doc) for name in doc locale; do take "usr/share/$name" "share/$name"; done ;;
all)
  mkdir -p "$out/bin"
  for path in $dependencies; do
    for program in "$path"/bin/*; do
      [ ! -e "$program" ] || ln -sf "$program" "$out/bin/"
    done
  done
  echo "$dependencies" >"$out/paths"
  ;;
esac
exit 0
