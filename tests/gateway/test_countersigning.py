"""A signature for what a running process holds: of that content, or of none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chunker.errors import StoreFull
from chunker.record import SIGNATURES_MAX, PathRecord
from chunker.store import MemoryStore
from gateway.countersigning import NOT_HELD, SIGNED, Countersigner, question
from gateway.policy import Policy, Rule
from gateway.signing import KeyRing, SecretKey
from tests.gateway.test_policy import sign
from tests.gateway.test_substituter import KEY, border, signed_path
from tests.peer.office import hold, office

SECOND = SecretKey("second-1", b"s" * 32)
RECORD, NAR = signed_path("path", size=1000)


class Holder:
    def __init__(self, *held: PathRecord) -> None:
        self.store = MemoryStore()
        self.told: list[PathRecord] = []
        for record in held:
            self.store.put_record(record)
        self.countersigner = Countersigner(self.store, self.told.append)

    def signatures(self) -> tuple[str, ...]:
        record = self.store.record(RECORD.store_hash)
        assert record is not None
        return record.signatures


async def test_a_signature_joins_those_that_are_there_once() -> None:
    holder = Holder(RECORD)
    for _ in range(2):
        assert await holder.countersigner.add(question(RECORD, SECOND)) == SIGNED
        assert holder.signatures() == (*RECORD.signatures, sign(RECORD, SECOND))
    assert holder.told[0].signatures == holder.signatures()


async def test_what_is_not_held_is_not_signed() -> None:
    holder = Holder()
    assert await holder.countersigner.add(question(RECORD, SECOND)) == NOT_HELD
    assert holder.told == []
    other_name = replace(RECORD, store_path=RECORD.store_path + "-x")
    holder = Holder(RECORD)
    assert await holder.countersigner.add(question(other_name, SECOND)) == NOT_HELD


async def test_a_signature_of_other_content_is_none() -> None:
    holder = Holder(RECORD)
    for other in (
        replace(RECORD, nar_size=RECORD.nar_size + 8),
        replace(RECORD, references=(RECORD.store_path,)),
    ):
        told = await holder.countersigner.add(question(other, SECOND))
        assert "other content than second-1 signed" in str(told["error"])
    path, public, _ = question(RECORD, SECOND).split(" ")
    for forged in (sign(RECORD, KEY), "second-1:AAAA", "second-1"):
        assert "error" in await holder.countersigner.add(f"{path} {public} {forged}")
    assert holder.signatures() == RECORD.signatures and holder.told == []


async def test_a_record_holds_so_many() -> None:
    full = replace(RECORD, signatures=tuple(f"k-{n}:AAAA" for n in range(SIGNATURES_MAX)))
    holder = Holder(full)
    told = await holder.countersigner.add(question(RECORD, SECOND))
    assert "signatures already" in str(told["error"]) and holder.signatures() == full.signatures


@pytest.mark.parametrize(
    "text", ["", "x", "../x a:b c:d", f"{RECORD.store_path} nokey nosig", f"{RECORD.store_path}"]
)
async def test_nonsense_is_an_error(text: str) -> None:
    assert "error" in await Holder(RECORD).countersigner.add(text)


async def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(RECORD)

    def full() -> None:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(holder.store, "flush", full)
    assert "full" in str((await holder.countersigner.add(question(RECORD, SECOND)))["error"])
    assert holder.told == []


async def test_what_was_answered_before_is_answered_anew() -> None:
    """The narinfo of a path that the gateway holds, and remembers."""
    keys = KeyRing((KEY.public, SECOND.public))
    async with office() as place:
        hold(place.stores.setdefault("me", MemoryStore()), RECORD, NAR)
        async with border(
            place, policy=Policy(keys, [Rule("any", ("office-1", "second-1"))])
        ) as me:
            target = f"/{RECORD.store_hash}.narinfo"
            assert b"second-1" not in bytes((await me.get(target)).body)  # type: ignore[arg-type]
            countersigner = Countersigner(
                me.node.store, lambda record: me.substituter.forget(record.store_hash)
            )
            assert await countersigner.add(question(RECORD, SECOND)) == SIGNED
            assert b"second-1" in bytes((await me.get(target)).body)  # type: ignore[arg-type]
