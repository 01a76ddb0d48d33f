"""`nix copy --to http://127.0.0.1:8555`: NARs come in by PUT, and seed the swarm.

    PUT nar/NAME     401 without the token, before a byte is read; else into the spool, unjudged
    PUT HASH.narinfo a key that counts here signed it? decompress within NarSize, read it as a NAR,
                     compare NarHash; only then it is in the store, and offered like a seeded path
    PUT realisations/, build-trace-v2/
                     a trusted key signed it? kept (gateway.shelf) and served like an upstream's
    PUT log/         kept likewise: who has the token is trusted as an upstream is
    PUT HASH.ls      read and dropped: listings are made here;  PUT nix-cache-info likewise

Nix sends the NAR before its narinfo, so it is spooled: under a quota, for an hour at most, in files
with names of our own. The spool is empty after a start. The token is a file of this user's, written
as a netrc that Nix can be pointed at; without `accept_uploads` nothing of this exists.

Answers: 200 done; 400 not what it says; 401 token; 403 nobody trusted signed it; 404 its NAR is not
here (any more); 405 not to be put here; 413 too long ever; 507 no room now (Nix tries again).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
import re
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import trio

from chunker.digest import ManifestId
from chunker.errors import ChunkerError, StoreError
from chunker.ingest import Ingest
from chunker.record import PathRecord
from chunker.store import BlockStore

from .besides import LOG_BYTES_MAX, parse_log
from .decompress import make_decoder
from .errors import ConfigError, NarinfoError, UpstreamError
from .narinfo import NARINFO_BYTES_MAX, Narinfo, parse
from .realisations import REALISATION_BYTES_MAX, Key, RealisationError, parse_target, verified
from .requests import Request
from .responses import Response, short
from .seeding import held_manifest, keep, record_of
from .shelf import Shelf
from .signing import KeyRing

log = logging.getLogger(__name__)

SPOOL_FILES_MAX = 1024
SPOOL_SECONDS_MAX = 3600.0
DISK_RESERVE_BYTES = 256 * 1024 * 1024
"""Stays free beside the spool, for the store itself."""
LISTING_BYTES_MAX = 64 * 1024 * 1024
LOOK_SECONDS = 60.0
READ_BYTES = 1024 * 1024
INGESTS_MAX = 2
LOGS_AT_ONCE_MAX = 4
"""In memory."""
NETRC_NAME = "upload.netrc"
_NAR = re.compile(r"/(nar/[0-9A-Za-z]{1,128}\.nar(?:\.[0-9a-z]{1,8})?)")
_NARINFO = re.compile(r"/([0-9abcdfghijklmnpqrsvwxyz]{32})\.narinfo")
_DROPPED = re.compile(r"/(?:[0-9abcdfghijklmnpqrsvwxyz]{32}\.ls|nix-cache-info)")


@dataclass(frozen=True)
class Spooled:
    """A NAR, compressed or not, that no narinfo has named yet."""

    file: Path
    size: int
    until: float


@dataclass
class Counts:
    """Since the start."""

    paths: int = 0
    """Accepted, with those that were here before."""
    nar_bytes: int = 0
    """Of what came in with them, in plain."""
    realisations: int = 0
    logs: int = 0
    refused: int = 0


class Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Uploads:
    def __init__(
        self,
        directory: Path,
        store: BlockStore,
        token: str,
        admits: Callable[[PathRecord], bool],
        offer: Callable[[PathRecord], None],
        bytes_max: int,
        shelf: Shelf,
        keys: KeyRing,
    ) -> None:
        """`directory` is ours alone and emptied. `admits`: whether a key that counts signed it.
        `offer` tells the swarm of what is in the store. `bytes_max`: of the spool. `keys`: those
        that may sign realisations, which go to the `shelf`."""
        self.counts = Counts()
        self._directory = directory
        self._store = store
        self._token = token
        self._admits = admits
        self._offer = offer
        self._bytes_max = bytes_max
        self._shelf = shelf
        self._keys = keys
        self._logs = trio.CapacityLimiter(LOGS_AT_ONCE_MAX)
        self._spool: dict[str, Spooled] = {}
        self._reserved = 0
        """Bytes that are on their way."""
        self._number = 0
        self._ingests = trio.CapacityLimiter(INGESTS_MAX)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)

    async def run(self) -> None:
        """Lets go of what no narinfo came for."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            self.expire()

    def expire(self) -> None:
        now = trio.current_time()
        for name in [name for name, spooled in self._spool.items() if spooled.until <= now]:
            log.warning("no narinfo came for %s within an hour; it is dropped", name)
            self._drop(name)

    def spooled_bytes(self) -> int:
        """What waits for its narinfo, and what is on its way."""
        return sum(entry.size for entry in self._spool.values()) + self._reserved

    async def put(self, request: Request, pieces: AsyncGenerator[bytes, None]) -> Response:
        """The server's PutHandler."""
        try:
            if not self._may(request.headers.get("authorization", "")):
                raise Refused(401, "this needs the password of upload.netrc (see --accept-uploads)")
            async with aclosing(pieces) as body:
                return await self._put(request, body)
        except Refused as refused:
            self.counts.refused += 1
            more = [("WWW-Authenticate", 'Basic realm="narswarm"')] if refused.status == 401 else []
            return short(refused.status, refused.reason, *more)

    async def _put(self, request: Request, body: AsyncIterator[bytes]) -> Response:
        if (match := _NAR.fullmatch(request.target)) is not None:
            await self._take_nar(match[1], request.length, body)
        elif (match := _NARINFO.fullmatch(request.target)) is not None:
            data = await _small(request.length, NARINFO_BYTES_MAX, body)
            await self._take_narinfo(match[1], data)
        elif _DROPPED.fullmatch(request.target):
            await _small(request.length, LISTING_BYTES_MAX, body, keep=False)
        elif (key := parse_target(request.target)) is not None:
            data = await _small(request.length, REALISATION_BYTES_MAX, body)
            await self._take_realisation(key, data)
        elif (log_path := parse_log(request.target)) is not None:
            if "content-encoding" in request.headers:
                raise Refused(400, "a log is put here in plain (no log-compression)")
            async with self._logs:
                await self._keep_file(log_path, await _small(request.length, LOG_BYTES_MAX, body))
            self.counts.logs += 1
        else:
            raise Refused(405, "this is nothing that a binary cache has")
        return short(200, "taken")

    def _may(self, header: str) -> bool:
        """Bearer, or Basic with any user: netrc has to name one."""
        kind, _, given = header.partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self._token.encode())

    # -- the spool -------------------------------------------------------------------------------

    async def _take_nar(self, name: str, size: int, body: AsyncIterator[bytes]) -> None:
        self._check_room(size)
        self._number += 1
        file = self._directory / f"{self._number}"
        self._reserved += size
        taken = False
        try:
            async with await trio.open_file(file, "xb") as out:
                async for piece in body:
                    await out.write(piece)
            taken = True
        except OSError as error:
            raise Refused(507, f"cannot spool it: {error.strerror}") from error
        finally:
            self._reserved -= size
            if not taken:
                file.unlink(missing_ok=True)
        self._drop(name)
        self._spool[name] = Spooled(file, size, trio.current_time() + SPOOL_SECONDS_MAX)

    def _check_room(self, size: int) -> None:
        if size == 0:
            raise Refused(400, "an empty NAR")
        if size > self._bytes_max:
            raise Refused(413, f"more than the {self._bytes_max} bytes that are spooled at most")
        self.expire()
        too_much = self.spooled_bytes() + size > self._bytes_max
        if too_much or len(self._spool) >= SPOOL_FILES_MAX:
            raise Refused(507, "the spool is full of NARs whose narinfos have not come")
        if shutil.disk_usage(self._directory).free < size + DISK_RESERVE_BYTES:
            raise Refused(507, "the disk is full")

    def _drop(self, name: str) -> None:
        spooled = self._spool.pop(name, None)
        if spooled is not None:
            spooled.file.unlink(missing_ok=True)

    # -- what counts -----------------------------------------------------------------------------

    async def _take_narinfo(self, store_hash: str, data: bytes) -> None:
        try:
            info = parse(data)
        except NarinfoError as error:
            raise Refused(400, str(error)) from error
        record = record_of(info)
        if record.store_hash != store_hash:
            raise Refused(400, f"the narinfo is of {info.store_path}")
        if not self._admits(record):
            raise Refused(403, f"no key that counts here signed {info.store_path}; sign it first")
        spooled = self._spool.get(info.url)
        manifest = await trio.to_thread.run_sync(held_manifest, self._store, record)
        try:
            if manifest is None:
                if spooled is None:
                    raise Refused(404, f"its NAR {info.url!r:.200} is not here; put that first")
                async with self._ingests:
                    manifest = await trio.to_thread.run_sync(self._ingest, spooled, info, record)
                self.counts.nar_bytes += record.nar_size
            kept = await trio.to_thread.run_sync(self._keep, record, manifest)
        except StoreError as error:
            raise Refused(507, str(error)) from error
        except (UpstreamError, ChunkerError) as error:
            self._drop(info.url)
            raise Refused(400, f"{info.store_path}: {error}") from error
        except OSError as error:
            raise Refused(507, f"cannot read the spool: {error.strerror}") from error
        self._drop(info.url)
        self.counts.paths += 1
        self._offer(kept)

    async def _take_realisation(self, key: Key, data: bytes) -> None:
        try:
            told = verified(key, data, self._keys)
        except RealisationError as error:
            raise Refused(400, str(error)) from error
        if told is None:
            raise Refused(403, f"no key that is trusted here signed {key.path}")
        await self._keep_file(key.path, told)
        self.counts.realisations += 1

    async def _keep_file(self, path: str, data: bytes) -> None:
        try:
            if shutil.disk_usage(self._directory).free < len(data) + DISK_RESERVE_BYTES:
                raise Refused(507, "the disk is full")
            await self._shelf.put(path, data)
        except OSError as error:
            raise Refused(507, f"cannot keep it: {error.strerror}") from error

    def _ingest(self, spooled: Spooled, info: Narinfo, record: PathRecord) -> ManifestId:
        decoder = make_decoder(info.compression, info.nar_size)
        ingest = Ingest(self._store, record.needles, nar_size_max=record.nar_size)
        with spooled.file.open("rb") as file:
            while data := file.read(READ_BYTES):
                trio.from_thread.check_cancelled()
                for piece in decoder.feed(data):
                    ingest.feed(piece)
        decoder.finish()
        return ingest.finish(record.nar_hash, record.nar_size)[0]

    def _keep(self, record: PathRecord, manifest: ManifestId) -> PathRecord:
        """Durable when it is answered."""
        keep(self._store, record, manifest, None)
        self._store.flush()
        kept = self._store.record(record.store_hash)
        assert kept is not None
        return kept


async def _small(
    length: int, bytes_max: int, body: AsyncIterator[bytes], *, keep: bool = True
) -> bytes:
    if length > bytes_max:
        raise Refused(413, f"more than {bytes_max} bytes")
    data = bytearray()
    async for piece in body:
        if keep:
            data += piece
    return bytes(data)


def upload_token(directory: Path, host: str) -> str:
    """The token of this store; made, with the netrc that holds it, where there is none. Raises
    ConfigError."""
    file = directory / NETRC_NAME
    try:
        if not file.exists():
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as out:
                out.write(f"machine {host} login narswarm password {secrets.token_urlsafe(32)}\n")
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"others can read the token in {file}; run: chmod 600 {file}")
        words = file.read_text().split()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    if len(words) < 2 or words[-2] != "password":
        raise ConfigError(f"{file} does not end in 'password TOKEN'; remove it for a new one")
    return words[-1]
