"""One audience means one verdict, whoever asks."""

from __future__ import annotations

import itertools
from dataclasses import replace

from gateway.narinfo import fingerprint
from gateway.offer import audience, policy
from gateway.signing import KeyRing, SecretKey, generate
from peer.identity import PeerId
from tests.peer.office import make_path


def test_records_of_one_audience_are_for_the_same_askers() -> None:
    keys = [generate(name) for name in ("office-1", "public-1", "foreign-1")]
    trusted, publish = KeyRing([keys[0].public]), KeyRing([keys[1].public])
    may_have = policy({PeerId("friend")}, trusted, publish)
    audience_of = audience(trusted, publish)
    verdicts: dict[object, tuple[bool, ...]] = {}
    for number, signers in enumerate(_subsets(keys) * 3):
        record = make_path(f"path-{number}", 1)[0]
        text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
        record = replace(record, signatures=tuple(key.sign(text) for key in signers))
        seen = tuple(may_have(PeerId(name), record) for name in ("friend", "stranger"))
        assert verdicts.setdefault(audience_of(record), seen) == seen
    assert len(verdicts) == 4


def _subsets(keys: list[SecretKey]) -> list[tuple[SecretKey, ...]]:
    return [some for count in range(4) for some in itertools.combinations(keys, count)]
