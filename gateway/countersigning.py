"""`narswarm sign --role`: one more signature on what a running process holds.

    sign     the bytes in the Nix store are hashed (gateway.vouching), and signed
             -> PATH, public key and signature through control.sock
    process  does it hold this path, and does the signature hold over its own record?
             -> united with the others, and offered to whom that allows

The store is locked while its process runs, and the secret key never leaves the command. The process
takes nobody's word for what was signed: a signature that does not hold over the record it has is of
other content, and two builders disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from chunker.errors import StoreError
from chunker.record import SIGNATURES_MAX, PathRecord, is_store_path, store_hash
from chunker.store import BlockStore

from .errors import BadKey
from .narinfo import fingerprint
from .signing import KeyRing, PublicKey, SecretKey

SIGNED = {"signed": True}
NOT_HELD = {"signed": False}
Report = dict[str, object]


def question(record: PathRecord, key: SecretKey) -> str:
    """What follows `sign` on the control socket."""
    return f"{record.store_path} {key.public.text} {key.sign(_text(record))}"


class Countersigner:
    def __init__(self, store: BlockStore, came_anew: Callable[[PathRecord], None]) -> None:
        """`came_anew` is told of a record that has one signature more."""
        self._store = store
        self._came_anew = came_anew

    async def add(self, text: str) -> Report:
        """SIGNED or NOT_HELD, or an `error`."""
        words = text.split(" ")
        if len(words) != 3 or not is_store_path(words[0]):
            return {"error": "a store path, a public key and a signature are needed"}
        try:
            key = PublicKey.parse(words[1])
            record = await trio.to_thread.run_sync(self._add, words[0], key, words[2])
        except (BadKey, StoreError) as error:
            return {"error": str(error)}
        if record is None:
            return dict(NOT_HELD)
        self._came_anew(record)
        return dict(SIGNED)

    def _add(self, store_path: str, key: PublicKey, signature: str) -> PathRecord | None:
        """The record with the signature, durable; None where no such path is held."""
        record = self._store.record(store_hash(store_path))
        if record is None or record.store_path != store_path:
            return None
        if not KeyRing((key,)).verified(_text(record), (signature,)):
            raise BadKey(
                f"{store_path} is held here with other content than {key.name} signed: the build "
                "is not reproducible, or one of the builders is wrong"
            )
        signatures = tuple(dict.fromkeys((*record.signatures, signature)))
        if len(signatures) > SIGNATURES_MAX:
            raise BadKey(f"{store_path} has {SIGNATURES_MAX} signatures already")
        record = replace(record, signatures=signatures)
        self._store.put_record(record)
        self._store.flush()
        return record


def _text(record: PathRecord) -> bytes:
    return fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
