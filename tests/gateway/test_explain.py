"""`narswarm explain`: what everybody said of a path, and what the policy makes of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from rich.console import Console

from chunker.record import SIGNATURES_MAX, PathRecord
from chunker.store import MemoryStore
from gateway import explain as explain_module
from gateway.alarms import Alarms
from gateway.errors import UpstreamError
from gateway.explain import Answer, Explainer, unite
from gateway.explain_page import explain_page
from gateway.lookup import Search, admitted_by
from gateway.narinfo import Narinfo, format, parse
from gateway.policy import Policy, Rule, any_of
from gateway.signing import KeyRing
from gateway.upstream import FileCache
from tests.gateway.test_content_address import one
from tests.gateway.test_policy import sign
from tests.gateway.test_substituter import FOREIGN, KEY, signed_path, write_cache
from tests.gateway.test_trust import BOTH, SECOND, signatures_of
from tests.peer.office import Node, hold, office

ANY = any_of(KeyRing((KEY.public, SECOND.public)))
Saw = Callable[[PathRecord, tuple[str, ...]], None]


class Broken(FileCache):
    async def narinfo(self, store_hash: str) -> Narinfo | None:
        raise UpstreamError(f"{self.url} is down")


class Silent(FileCache):
    async def narinfo(self, store_hash: str) -> Narinfo | None:
        await trio.sleep_forever()


async def explain(
    node: Node,
    text: str,
    *upstreams: FileCache,
    policy: Policy = ANY,
    saw: Saw = lambda record, signatures: None,
    policies_of: Mapping[str, Policy] | None = None,
) -> dict:  # type: ignore[type-arg]
    explainer = Explainer(node.store, node.swarm, upstreams, policy, saw, policies_of or {})
    return await explainer.explain(text)


def page(answer: dict) -> str:  # type: ignore[type-arg]
    console = Console(width=60, file=io.StringIO(), color_system=None)
    console.print(explain_page(answer), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_everybody_is_asked_and_the_first_in_order_gives_it(tmp_path: Path) -> None:
    record, nar = signed_path("path", size=100_000)
    cache = write_cache(tmp_path / "a", record, nar)
    async with office() as place:
        hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
        seed = await place.start("seed", "seed")
        me = await place.start("me", "gateway", "seed")
        answer = await explain(me, record.store_path, cache)
        assert answer["admitted"] and answer["advice"] == []
        (content,) = answer["contents"]
        assert content["admitted_by"] == "any trusted key"
        assert content["comes_from"] == str(seed.peer)
        assert content["signers"] == [{"key": "office-1", "standing": "counts", "only_for": []}]
        says = {source["kind"]: source["says"] for source in answer["sources"]}
        assert says == {"store": "no", "upstream": "yes", "peer": "yes"}
        hold(me.store, record, nar)
        answer = await explain(me, record.store_hash, cache)
        assert answer["store_path"] == record.store_path
        assert answer["contents"][0]["comes_from"] == "this machine"
        assert "Nix gets it from this machine" in page(answer)


async def test_what_two_builders_lack_and_where_it_comes_from(tmp_path: Path) -> None:
    record, nar = signed_path("path", size=1000)
    cache = write_cache(tmp_path / "a", record, nar)
    vouching = signatures_of(tmp_path / "b", record)
    async with office() as place:
        me = await place.start("me", "gateway")
        refused = await explain(me, record.store_path, cache, policy=BOTH)
        assert not refused["admitted"]
        assert "missing: second-1" in page(refused) and "narswarm sign" in page(refused)
        admitted = await explain(me, record.store_path, vouching, cache, policy=BOTH)
        assert admitted["admitted"] and admitted["contents"][0]["comes_from"] == cache.url
        assert "signatures only" in page(admitted) and "admitted by both" in page(admitted)
        nowhere = await explain(me, record.store_path, vouching)
        assert not nowhere["admitted"] and "nobody who was asked has the NAR" in page(nowhere)


async def test_who_fails_or_is_silent_is_told_apart_from_who_has_it_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_module, "ASK_SECONDS_MAX", 0.3)
    caches = [kind(f"file:///{kind.__name__}", tmp_path) for kind in (Broken, Silent, FileCache)]
    async with office() as place:
        me = await place.start("me", "gateway")
        answer = await explain(me, f"/nix/store/{'0' * 32}-x", *caches)
        says = [source["says"] for source in answer["sources"] if source["kind"] == "upstream"]
        assert says == ["error", "silent", "no"]
        assert "some sources could not say" in page(answer) and "is down" in page(answer)
        absent = await explain(me, f"/nix/store/{'0' * 32}-x", caches[2])
        assert "nobody who was asked has it" in page(absent)


async def test_reasons_and_what_to_do(tmp_path: Path) -> None:
    foreign, nar = signed_path("foreign", FOREIGN, 1000)
    signed, signed_nar = signed_path("signed", KEY, 1000)
    addressed, addressed_nar = one("text:sha256", "sentence")
    foreign_cache = write_cache(tmp_path / "a", foreign, nar)
    cache = write_cache(tmp_path / "b", signed, signed_nar)
    content = write_cache(tmp_path / "c", addressed, addressed_nar)
    async with office() as place:
        me = await place.start("me", "gateway")
        shown = page(await explain(me, foreign.store_path, foreign_cache))
        assert "no trusted key signed it" in shown and "if you trust foreign-1" in shown
        denied = Policy(ANY.keys, denied_paths=["signed"])
        shown = page(await explain(me, signed.store_path, cache, policy=denied))
        assert "denied_paths has 'signed'" in shown and "take it out of denied_paths" in shown
        narrow = Policy(ANY.keys, [Rule("project", ("office-1",), paths=("project-*",))])
        shown = page(await explain(me, signed.store_path, cache, policy=narrow))
        assert "office-1: trusted, but not for this name" in shown
        assert "no rule fits the name" in shown
        shown = page(await explain(me, addressed.store_path, content))
        assert "admitted by its content address" in shown and "signed by nobody" in shown
        assert "neither a store path" in str(await explain(me, "../x"))


async def test_a_disagreement_is_seen_and_shown(tmp_path: Path) -> None:
    first, nar = signed_path("path", KEY, 1000)
    second, other = signed_path("other", KEY, 1000)
    second = replace(second, store_path=first.store_path)
    second = replace(second, signatures=(sign(second, SECOND),))
    caches = (
        write_cache(tmp_path / "a", first, nar),
        write_cache(tmp_path / "b", second, other),
    )
    alarms = Alarms(refuses=True)
    policy = Policy(ANY.keys, disputed=alarms.disputed)

    def saw(record: PathRecord, signatures: tuple[str, ...]) -> None:
        alarms.saw(0, record, [one.partition(":")[0] for one in signatures])

    async with office() as place:
        me = await place.start("me", "gateway")
        answer = await explain(me, first.store_path, *caches, policy=policy, saw=saw)
        assert not answer["admitted"] and len(answer["contents"]) == 2
        assert "trusted keys disagree" in page(answer) and "into denied_keys" in page(answer)


async def test_keys_that_count_for_one_upstream_only(tmp_path: Path) -> None:
    """As in a look-up: for a content that it told of, and for no other."""
    record, nar = signed_path("path", FOREIGN, 1000)
    project, other = (write_cache(tmp_path / name, record, nar) for name in "ab")
    policies_of = {project.url: ANY.with_keys(KeyRing((FOREIGN.public,)))}
    async with office() as place:
        me = await place.start("me", "gateway")
        shown = page(await explain(me, record.store_path, project, policies_of=policies_of))
        assert "Nix gets it from" in shown and "admitted by any trusted key" in shown
        assert f"foreign-1: counts for what {project.url} says" in shown
        refused = await explain(me, record.store_path, other, policies_of=policies_of)
        assert not refused["admitted"] and "if you trust" not in page(refused)
        assert f"foreign-1: counts only for what {project.url} says" in page(refused)


def test_it_unites_what_a_look_up_unites() -> None:
    record, _ = signed_path("path", size=1000)
    junk = tuple(f"junk-{number}:AAAA" for number in range(SIGNATURES_MAX))
    parts = (junk, record.signatures, junk[::-1], (sign(record, SECOND),))
    said = [
        (name, replace(record, signatures=part)) for name, part in zip("abcd", parts, strict=True)
    ]
    search = Search(record.store_hash, lambda united, sources: admitted_by(united, [BOTH]))
    for name, part in said:
        search.ask(name)
        search.said(name, part, parse(format(part, part.signatures)))
        search.done(name)
    (united,) = unite(Answer("upstream", name, "yes", part) for name, part in said)
    assert search.found is not None and search.heard() == [united]
    assert united.sources == set("abcd") and len(united.record.signatures) == SIGNATURES_MAX + 2
    assert BOTH.judge(united.record).counting == search.found.signatures


def test_a_wrong_address_hides_no_true_one() -> None:
    record, _ = one("fixed:r:sha256", "small")
    addresses = ("fixed:r:sha256:junk", "", record.content_address, "junk")
    said = (replace(record, content_address=address) for address in addresses)
    (united,) = unite(Answer("upstream", "a", "yes", part) for part in said)
    assert united.record == record
