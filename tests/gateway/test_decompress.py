"""Bounded decoders: any codec, any split, and bombs that cost one piece of memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc
from collections.abc import Callable

import brotli
import pytest
import zstandard

from gateway.decompress import make_decoder
from gateway.errors import UpstreamError
from tests.golden.samples import sample_bytes

DATA = sample_bytes(700_000) + bytes(700_000)
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "br": lambda data: brotli.compress(data, quality=2),
}
PACKED = [name for name in CODECS if name != "none"]


def decode(name: str, data: bytes, most: int, step: int = 1 << 20) -> bytes:
    decoder, out = make_decoder(name, most), b""
    for at in range(0, len(data), step):
        out += b"".join(decoder.feed(data[at : at + step]))
    decoder.finish()
    return out


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("step", [100_003, 1 << 20])
def test_round_trip(name: str, step: int) -> None:
    assert decode(name, CODECS[name](DATA), len(DATA), step) == DATA


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("megabytes", [5, 20])
def test_what_shrinks_to_nothing_comes_out_whole(name: str, megabytes: int) -> None:
    """The last input gives many pieces of output."""
    size = megabytes * 1_000_000
    decoder = make_decoder(name, size)
    packed = b"".join(_zeros(name, megabytes))
    assert sum(map(len, decoder.feed(packed))) == size
    decoder.finish()


@pytest.mark.parametrize("name", CODECS)
def test_more_than_was_signed_is_refused(name: str) -> None:
    with pytest.raises(UpstreamError, match="longer than its signed NarSize"):
        decode(name, CODECS[name](DATA), len(DATA) - 1)


@pytest.mark.parametrize("name", PACKED)
def test_damaged_cut_or_continued_streams(name: str) -> None:
    packed = CODECS[name](DATA)
    with pytest.raises(UpstreamError):
        decode(name, packed[: len(packed) // 2], len(DATA))
    with pytest.raises(UpstreamError):
        decode(name, b"garbage!" * 100, len(DATA))
    for more in (b"more", CODECS[name](DATA)):
        with pytest.raises(UpstreamError):
            decode(name, packed + more, len(DATA), step=len(packed))


@pytest.mark.parametrize("name", PACKED)
def test_a_bomb_is_stopped_at_the_signed_size(name: str) -> None:
    """256 MB of zeros behind a NarSize of 1 MB."""
    bomb = b"".join(_zeros(name, 256))
    tracemalloc.start()
    try:
        with pytest.raises(UpstreamError, match="longer than"):
            decode(name, bomb, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def _zeros(name: str, megabytes: int) -> list[bytes]:
    if name == "zstd":
        zstd = zstandard.ZstdCompressor().compressobj()
        return [*[zstd.compress(bytes(1_000_000)) for _ in range(megabytes)], zstd.flush()]
    if name == "gzip":
        return [gzip.compress(bytes(megabytes * 1_000_000), 1)]
    if name == "br":
        return [brotli.compress(bytes(megabytes * 1_000_000), quality=1)]
    codec = lzma.LZMACompressor(preset=0) if name == "xz" else bz2.BZ2Compressor(1)
    return [*[codec.compress(bytes(1_000_000)) for _ in range(megabytes)], codec.flush()]


def test_a_window_beyond_128_mib_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    packed = stream.compress(bytes(1000)) + stream.flush()
    with pytest.raises(UpstreamError):
        decode("zstd", packed, 1000)


def test_an_xz_dictionary_beyond_the_largest_preset_is_refused() -> None:
    decode("xz", lzma.compress(DATA, preset=9), len(DATA))
    wide = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 128 << 20}]
    with pytest.raises(UpstreamError):
        decode("xz", lzma.compress(DATA, filters=wide), len(DATA))


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(UpstreamError, match="'lz7' is not known"):
        make_decoder("lz7", 1)
