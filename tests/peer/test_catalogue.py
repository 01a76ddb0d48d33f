"""Who may know of what is held: one verdict for each audience, and nothing for the rest."""

from __future__ import annotations

from dataclasses import replace

from chunker.digest import ManifestId
from chunker.record import PathRecord
from chunker.store import MemoryStore
from peer.catalogue import Catalogue, prefix, salted
from peer.identity import PeerId
from tests.peer.office import make_path

FRIEND, STRANGER = PeerId("friend"), PeerId("stranger")
SALT = b"salt".ljust(32)


class Policy:
    """`private` in a signature means: for the friend alone. Counts what it is asked."""

    def __init__(self) -> None:
        self.verdicts = 0
        self.audiences = 0

    def may_have(self, asker: PeerId, record: PathRecord) -> bool:
        self.verdicts += 1
        return asker == FRIEND or not record.signatures[0].startswith("private")

    def audience(self, record: PathRecord) -> str:
        self.audiences += 1
        return record.signatures[0]


def path(name: str, signature: str) -> PathRecord:
    record = replace(make_path(name, 1)[0], signatures=(signature,))
    return replace(record, manifest=ManifestId(name.encode().ljust(32)))


PUBLIC = [path(f"public-{number}", "public:AA") for number in range(50)]
PRIVATE = [path(f"private-{number}", "private:AA") for number in range(50)]


def stored() -> tuple[MemoryStore, Policy]:
    store = MemoryStore()
    for record in PUBLIC + PRIVATE:
        store.put_record(record)
    return store, Policy()


def told(records: list[PathRecord]) -> list[bytes]:
    return sorted(prefix(SALT, record.store_hash) for record in records)


def test_a_summary_holds_what_the_asker_may_have() -> None:
    store, policy = stored()
    for catalogue in (
        Catalogue(store, SALT, policy.may_have),
        Catalogue(store, SALT, policy.may_have, policy.audience),
    ):
        assert catalogue.prefixes(FRIEND) == told(PUBLIC + PRIVATE)
        assert catalogue.prefixes(STRANGER) == told(PUBLIC)
        assert catalogue.for_asker(STRANGER, [PRIVATE[0], PUBLIC[0]]) == told(PUBLIC[:1])


def test_each_path_is_judged_once_and_each_asker_by_audience() -> None:
    store, policy = stored()
    catalogue = Catalogue(store, SALT, policy.may_have, policy.audience)
    assert (policy.audiences, policy.verdicts) == (0, 0)  # nothing to wait for at the start
    for asker in (FRIEND, STRANGER, FRIEND, PeerId("third")):
        catalogue.prefixes(asker)
    assert policy.audiences <= len(PUBLIC + PRIVATE) + 3 * 2
    assert policy.verdicts == 4 * 2


def test_a_record_that_came_anew_has_the_audience_of_its_new_signatures() -> None:
    store, policy = stored()
    catalogue = Catalogue(store, SALT, policy.may_have, policy.audience)
    catalogue.prefixes(STRANGER)
    record = replace(PUBLIC[0], signatures=("private:BB",))
    store.put_record(record)
    catalogue.add(record)
    assert catalogue.prefixes(STRANGER) == told(PUBLIC[1:])


def test_what_left_is_not_held_and_those_who_listen_hear_of_it() -> None:
    store, policy = stored()
    catalogue = Catalogue(store, SALT, policy.may_have, policy.audience)
    heard: list[tuple[PathRecord, bool]] = []

    def listener(record: PathRecord, held: bool) -> None:
        heard.append((record, held))

    catalogue.listen(listener)
    catalogue.listen(listener)
    catalogue.remove(PUBLIC[0])
    catalogue.add(PUBLIC[1])
    assert heard == [(PUBLIC[0], False), (PUBLIC[1], True)]
    assert not catalogue.holds(PUBLIC[0].store_hash) and catalogue.holds(PUBLIC[1].store_hash)
    assert catalogue.prefixes(STRANGER) == told(PUBLIC[1:])
    assert catalogue.may_read(FRIEND, PUBLIC[0].manifest) is None
    catalogue.unlisten(listener)
    catalogue.add(PUBLIC[0])
    assert len(heard) == 2


def test_what_is_under_way_is_told_until_its_last_download_ends() -> None:
    record, _ = make_path("path", 100)
    first, second = (replace(record, manifest=ManifestId(bytes([n]) * 32)) for n in (1, 2))
    catalogue = Catalogue(MemoryStore(), SALT, lambda asker, _: asker == FRIEND)
    question = salted(SALT, record.store_hash)
    for begun in (first, second, first):
        catalogue.begin(begun)
    assert catalogue.look_up(FRIEND, question) is not None
    assert catalogue.look_up(STRANGER, question) is None
    assert len(catalogue.prefixes(FRIEND)) == 1 and catalogue.prefixes(STRANGER) == []
    assert catalogue.may_read(STRANGER, second.manifest) is None
    catalogue.end(first.manifest)
    assert catalogue.look_up(FRIEND, question) == second
    catalogue.end(first.manifest)
    catalogue.end(second.manifest)
    assert catalogue.look_up(FRIEND, question) is None
    assert catalogue.prefixes(FRIEND) == [] and not catalogue.holds(record.store_hash)


def test_of_what_is_under_way_the_last_that_began_is_told() -> None:
    """What began before it lost its owner, and is left by its readers one by one."""
    catalogue = Catalogue(MemoryStore(), SALT, Policy().may_have)
    lost = PUBLIC[0]
    new = replace(lost, manifest=ManifestId(b"new".ljust(32)))
    catalogue.begin(lost)
    catalogue.begin(new)
    assert catalogue.look_up(FRIEND, salted(SALT, lost.store_hash)) == new
    catalogue.end(new.manifest)
    assert catalogue.look_up(FRIEND, salted(SALT, lost.store_hash)) == lost
