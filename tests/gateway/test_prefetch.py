"""Which NARs are begun before Nix asks, and how many at most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chunker.record import PathRecord
from gateway import prefetch as prefetch_module
from gateway.narinfo import fingerprint
from gateway.prefetch import BEGUN_BYTES_MAX, KEEP_SECONDS, NAR_BYTES_MAX, Prefetch
from tests.gateway.test_substituter import KEY, border, signed_path, write_cache
from tests.peer.office import office, until


def referring(name: str, *references: PathRecord, size: int = 10) -> tuple[PathRecord, bytes]:
    record, nar = signed_path(name, size=size)
    record = replace(record, references=tuple(sorted(other.store_path for other in references)))
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return replace(record, signatures=(KEY.sign(text),)), nar


LIBRARY = signed_path("library", size=10)[0]
PROGRAM = referring("program", LIBRARY)[0]
OTHER = signed_path("other", size=10)[0]


def test_what_refers_to_what_is_fetched_is_next() -> None:
    prefetch = Prefetch()
    for record in (PROGRAM, LIBRARY, OTHER):
        prefetch.asked(0.0, record)
    assert prefetch.requested(1.0, OTHER.store_hash) == []
    assert prefetch.requested(1.0, LIBRARY.store_hash) == [PROGRAM]
    assert prefetch.requested(1.0, LIBRARY.store_hash) == []


def test_large_ones_and_old_questions_begin_nothing() -> None:
    prefetch = Prefetch()
    prefetch.asked(0.0, replace(PROGRAM, nar_size=NAR_BYTES_MAX + 1))
    assert prefetch.requested(1.0, LIBRARY.store_hash) == []
    prefetch.asked(0.0, PROGRAM)
    assert prefetch.requested(KEEP_SECONDS, LIBRARY.store_hash) == []
    assert not prefetch._referrers


def test_what_was_begun_and_not_asked_for_is_bounded() -> None:
    prefetch = Prefetch()
    many = [replace(referring(f"p{n}", LIBRARY)[0], nar_size=NAR_BYTES_MAX) for n in range(40)]
    for record in many:
        prefetch.asked(0.0, record)
    fits = BEGUN_BYTES_MAX // NAR_BYTES_MAX
    begun = prefetch.requested(0.0, LIBRARY.store_hash)
    assert len(begun) == fits
    assert prefetch.requested(1.0, LIBRARY.store_hash) == []
    prefetch.requested(1.0, begun[0].store_hash)
    assert len(prefetch.requested(1.0, LIBRARY.store_hash)) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "ASKED_MAX", 3)
    prefetch = Prefetch()
    for number in range(8):
        prefetch.asked(0.0, referring(f"p{number}", LIBRARY)[0])
    assert len(prefetch.requested(0.0, LIBRARY.store_hash)) == 3


async def test_a_question_alone_fetches_nothing(tmp_path: Path) -> None:
    async with office() as place:
        library, nar = referring("library", size=1000)
        program, other = referring("program", library, size=1000)
        cache = write_cache(tmp_path, library, nar)
        write_cache(tmp_path, program, other)
        async with border(place, upstreams=(cache,)) as me:
            assert await me.narinfo(program) == await me.narinfo(library) == 200
            assert me.substituter.deliveries.running() == ()
            assert await me.nar(library) == nar
            await until(lambda: me.node.store.record(program.store_hash) is not None)
            await until(lambda: me.substituter.deliveries.running() == ())
            assert me.substituter.deliveries.upstream_bytes == len(nar) + len(other)
            assert await me.nar(program) == other
            assert me.substituter.deliveries.upstream_bytes == len(nar) + len(other)
