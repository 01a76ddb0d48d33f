"""A closure that looks like a real one, made without Nix: for demonstrations and measurements.

The same seed gives the same bytes on every machine, so that several processes, or a test and its
child, can agree on a closure without sending it. What it imitates (design.md, the shape of a real
store): a few paths hold most of the bytes while the median is some hundred KiB; references go
several levels deep and some paths refer to themselves; the hash parts of references stand as text
in wrappers and .pc files and between zero bytes in binaries; binaries compress about threefold,
some data not at all. The last path is the root: everything else is in its closure.

NARs are written here as they stream, in Nix's format (src/libutil/archive.cc): strings with a
64-bit little-endian length, zero-padded to 8 bytes, entries of a directory sorted by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chunker.digest import NarHash, nix32_encode
from chunker.record import STORE_DIRECTORY, store_hash

from .narinfo import fingerprint

PATHS_MAX = 4096
BYTES_DEFAULT = 52 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
REFERENCES_MAX = 6
LEVEL_SPAN = 4
"""One reference goes to one of so many predecessors, which makes the closure deep."""
INSTRUCTION_BYTES = 16
TEXT_SHARE, NOISE_SHARE = 0.05, 0.2
"""Of a path's bytes: text, and what does not compress. The rest is binaries."""
TAIL_LARGEST, TAIL_SMALLEST = 1.5, 0.08
HEAVY = {"python3-3.12.4": 16.0, "glibc-2.39-52": 9.0, "gcc-13.3.0-lib": 7.0}
HEAVY |= {"icu4c-74.2": 6.0, "perl-5.38.2": 5.0}
NAMES = (
    "glibc-2.39-52", "bash-5.2p26", "gcc-13.3.0-lib", "zlib-1.3.1", "ncurses-6.4.20221231",
    "openssl-3.0.14", "readline-8.2p10", "python3-3.12.4", "xz-5.4.7", "bzip2-1.0.8",
    "coreutils-9.5", "libffi-3.4.6", "expat-2.6.2", "sqlite-3.46.0", "icu4c-74.2",
    "libxml2-2.12.7", "perl-5.38.2", "curl-8.8.0", "pcre2-10.43", "gnugrep-3.11",
    "gnused-4.9", "git-2.45.2", "nghttp2-1.61.0-lib",
)  # fmt: skip
ROOT_NAME = "office-environment-1.0"


class SecretKey(Protocol):
    """What `gateway.signing.SecretKey` does here."""

    def sign(self, text: bytes) -> str: ...


@dataclass(frozen=True, slots=True)
class CachedPath:
    """A path of the closure as it was written to a binary cache."""

    store_path: str
    references: tuple[str, ...]
    nar_hash: NarHash
    nar_size: int

    @property
    def store_hash(self) -> str:
        return store_hash(self.store_path)


@dataclass(frozen=True, slots=True)
class DemoPath:
    """`references` are full store paths, sorted; `content_bytes` is about the size of the NAR."""

    store_path: str
    references: tuple[str, ...]
    content_bytes: int
    seed: str

    @property
    def name(self) -> str:
        return self.store_path[len(STORE_DIRECTORY) + 34 :]

    def nar(self) -> Iterator[bytes]:
        """The NAR in pieces of at most about 1 MiB, the same ones every time."""
        yield from _batched(_archive(_tree(self)))


def make_closure(seed: int, paths: int = 24, bytes_total: int = BYTES_DEFAULT) -> list[DemoPath]:
    """`paths` store paths, each referring only to earlier ones or itself, with NARs of about
    `bytes_total` bytes together."""
    assert 0 < paths <= PATHS_MAX and bytes_total >= 0
    names = [*(_name(index) for index in range(paths - 1)), ROOT_NAME]
    weights = _weights(names)
    closure: list[DemoPath] = []
    unused: set[str] = set()
    for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
        own_seed = f"narswarm-demo {seed} {index} {name}"
        hash_part = nix32_encode(hashlib.sha256(own_seed.encode()).digest()[:20])
        store_path = f"{STORE_DIRECTORY}/{hash_part}-{name}"
        references = _references(own_seed, closure)
        if index == paths - 1:
            references |= unused
        unused -= references
        unused.add(store_path)
        if index % 3 == 0:
            references.add(store_path)
        size = int(weight / sum(weights) * bytes_total)
        closure.append(DemoPath(store_path, tuple(sorted(references)), size, own_seed))
    return closure


def write_cache(
    closure: Sequence[DemoPath], directory: Path, secret: SecretKey
) -> list[CachedPath]:
    """A binary cache as Nix reads it from `file://`, uncompressed; every narinfo is signed."""
    written: list[CachedPath] = []
    (directory / "nar").mkdir(parents=True, exist_ok=True)
    (directory / "nix-cache-info").write_text(
        f"StoreDir: {STORE_DIRECTORY}\nWantMassQuery: 1\nPriority: 40\n"
    )
    for path in closure:
        nar_hash, nar_size, url = _write_nar(path, directory)
        signature = secret.sign(fingerprint(path.store_path, nar_hash, nar_size, path.references))
        base_names = (to[len(STORE_DIRECTORY) + 1 :] for to in path.references)
        nar_hash_text = f"sha256:{nix32_encode(nar_hash)}"
        written.append(CachedPath(path.store_path, path.references, nar_hash, nar_size))
        (directory / f"{store_hash(path.store_path)}.narinfo").write_text(
            f"StorePath: {path.store_path}\nURL: {url}\nCompression: none\n"
            f"FileHash: {nar_hash_text}\nFileSize: {nar_size}\n"
            f"NarHash: {nar_hash_text}\nNarSize: {nar_size}\n"
            f"References: {' '.join(base_names)}\nSig: {signature}\n"
        )
    return written


def _write_nar(path: DemoPath, directory: Path) -> tuple[NarHash, int, str]:
    digest, size = hashlib.sha256(), 0
    partial = directory / "nar" / "partial"
    with partial.open("wb") as file:
        for piece in path.nar():
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    url = f"nar/{nix32_encode(digest.digest())}.nar"
    partial.rename(directory / url)
    return NarHash(digest.digest()), size, url


def _name(index: int) -> str:
    turn, place = divmod(index, len(NAMES))
    return NAMES[place] + (f"-{turn}" if turn else "")


def _weights(names: Sequence[str]) -> list[float]:
    """Relative sizes: the heavy names as listed, all others on a logarithmic slope."""
    tail = [name for name in names if name not in HEAVY]
    step = (TAIL_SMALLEST / TAIL_LARGEST) ** (1 / max(len(tail) - 1, 1))
    # Neighbours in the list should not be neighbours in size: order the slope by a hash.
    order = sorted(tail, key=lambda name: hashlib.sha256(name.encode()).digest())
    slope = {name: TAIL_LARGEST * step**rank for rank, name in enumerate(order)}
    return [HEAVY[name] if name in HEAVY else slope[name] for name in names]


def _references(seed: str, earlier: Sequence[DemoPath]) -> set[str]:
    """The first path (a libc), one recent path and a few others."""
    if not earlier:
        return set()
    draws = hashlib.sha256(f"{seed} references".encode()).digest()
    recent = earlier[-1 - draws[0] % min(LEVEL_SPAN, len(earlier))]
    others = [
        earlier[int.from_bytes(draws[2 * n : 2 * n + 2], "big") % len(earlier)]
        for n in range(1, 1 + draws[1] % (REFERENCES_MAX - 1))
    ]
    return {path.store_path for path in (earlier[0], recent, *others)}


@dataclass(frozen=True, slots=True)
class _File:
    size: int
    content: Iterator[bytes]
    executable: bool = False


_Node = _File | str | dict[str, "_Node"]
"""A file, a link target, or a directory."""


def _tree(path: DemoPath) -> _Node:
    short = path.name.split("-")[0]
    text = int(path.content_bytes * TEXT_SHARE)
    noise = int(path.content_bytes * NOISE_SHARE)
    binary = max(path.content_bytes - text - noise, 256)
    program, library = binary // 3, binary - binary // 3
    propagated = " ".join(path.references).encode() + b"\n"
    own = path.store_path if path.store_path in path.references else "/usr"
    package = f"prefix={own}\nlibdir={own}/lib\nName: {short}\n".encode()
    package += b"".join(f"Libs.private: -L{to}/lib\n".encode() for to in path.references)
    return {
        "bin": {short: _File(program, _binary(path, "program", program), executable=True)},
        "lib": {
            f"lib{short}.so": f"lib{short}.so.1",
            f"lib{short}.so.1": _File(library, _binary(path, "library", library), executable=True),
            "pkgconfig": {f"{short}.pc": _File(len(package), iter([package]))},
        },
        "nix-support": {"propagated-build-inputs": _File(len(propagated), iter([propagated]))},
        "share": {
            "data.gz": _File(noise, _noise(f"{path.seed} data", noise)),
            "doc": {"README": _File(text, _text(path, text))},
        },
    }


def _binary(path: DemoPath, part: str, size: int) -> Iterator[bytes]:
    """An ELF header's first bytes, then instructions from a small vocabulary, with a run path
    naming the references between them in every piece."""
    run_path = b"\0" + b":".join(f"{to}/lib".encode() for to in path.references) + b"\0"
    vocabulary = hashlib.shake_256(path.seed.encode()).digest(256 * INSTRUCTION_BYTES)
    words = [vocabulary[n : n + INSTRUCTION_BYTES] for n in range(0, len(vocabulary), 16)]
    yield (b"\x7fELF\x02\x01\x01" + bytes(9))[:size]
    left = size - 16
    for number in range(size // PIECE_BYTES + 1):
        draws = _digest(f"{path.seed} {part} {number}", PIECE_BYTES // INSTRUCTION_BYTES)
        piece = run_path + b"".join([words[draw] for draw in draws])
        if left > 0:
            yield piece[: min(left, PIECE_BYTES)]
            left -= PIECE_BYTES


def _text(path: DemoPath, size: int) -> Iterator[bytes]:
    """Documentation: a store path in one line of sixteen."""
    seen = path.references or ("nothing",)
    lines = [
        f"{path.name} line {number}: {_digest(f'{path.seed} {number}', 12).hex()} see "
        f"{seen[number % len(seen)] if number % 16 == 0 else 'above'}/share/doc\n".encode()
        for number in range(128)
    ]
    page = b"".join(lines)
    while size > 0:
        yield page[:size]
        size -= len(page)


def _noise(seed: str, size: int) -> Iterator[bytes]:
    for start in range(0, size, PIECE_BYTES):
        yield _digest(f"{seed} {start}", min(PIECE_BYTES, size - start))


def _digest(seed: str, size: int) -> bytes:
    """`size` bytes that look random and depend on `seed` alone."""
    return hashlib.shake_128(seed.encode()).digest(size)


def _archive(tree: _Node) -> Iterator[bytes]:
    yield _string(b"nix-archive-1")
    yield from _node(tree)


def _node(node: _Node) -> Iterator[bytes]:
    yield _strings("(", "type")
    if isinstance(node, _File):
        yield _strings("regular", *(("executable", "") if node.executable else ()), "contents")
        yield node.size.to_bytes(8, "little")
        yield from node.content
        yield bytes(-node.size % 8)
    elif isinstance(node, str):
        yield _strings("symlink", "target", node)
    else:
        yield _strings("directory")
        for name in sorted(node, key=str.encode):
            yield _strings("entry", "(", "name", name, "node")
            yield from _node(node[name])
            yield _strings(")")
    yield _strings(")")


def _strings(*texts: str) -> bytes:
    return b"".join(_string(text.encode()) for text in texts)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def _batched(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Framing joined with what follows, up to about PIECE_BYTES."""
    batch = bytearray()
    for piece in pieces:
        if batch and len(batch) + len(piece) > PIECE_BYTES:
            yield bytes(batch)
            batch.clear()
        batch += piece
    if batch:
        yield bytes(batch)
