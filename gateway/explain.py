"""`narswarm explain`: everybody is asked about one path, and the policy says what it makes of that.

A look-up ends with the first answer that is enough; this one hears all of them, within a deadline,
and keeps what each said, so that a person sees who signed what and what is missing. It unites them
in the look-up's own `Search`, and judges with the same policies: those of an upstream with keys of
its own count for a content that it told of. It downloads nothing, and asks no office cache to fetch
anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from chunker.digest import nix32_encode
from chunker.record import PathRecord, is_store_path, store_hash

from .errors import UpstreamError
from .lookup import Heard, Search, admitted_by
from .narinfo import SIGNATURES_ONLY_URL, Narinfo
from .policy import Judgement, Policy
from .seeding import NO_MANIFEST, held_manifest, record_of

if TYPE_CHECKING:
    from chunker.store import BlockStore
    from peer.swarm import Swarm

    from .upstream import Upstream

ASK_SECONDS_MAX = 8.0
_HASH = re.compile(r"[0-9abcdfghijklmnpqrsvwxyz]{32}")

Report = dict[str, object]


@dataclass
class Answer:
    """What one source said. `detail`: why it said nothing."""

    kind: str
    name: str
    says: str
    record: PathRecord | None = None
    detail: str = ""
    seconds: float = 0.0
    has_nar: bool = True
    info: Narinfo | None = None
    """An upstream's."""


@dataclass
class Explainer:
    """`saw` is told of signatures as in a look-up; `policies_of` as there: by the URL of an
    upstream, the policy with keys that count for what it says."""

    store: BlockStore
    swarm: Swarm
    upstreams: tuple[Upstream, ...]
    policy: Policy
    saw: Callable[[PathRecord, tuple[str, ...]], None]
    policies_of: Mapping[str, Policy] = field(default_factory=dict)
    _answers: list[Answer] = field(default_factory=list)

    async def explain(self, text: str) -> Report:
        """Of a store path or its hash part. An `error` in the answer: it is neither."""
        if not is_store_path(text) and not _HASH.fullmatch(text):
            return {"error": f"{text!r:.200} is neither a store path nor the hash part of one"}
        wanted = store_hash(text) if is_store_path(text) else text
        self._answers = [await trio.to_thread.run_sync(self._here, wanted)]
        for upstream in self.upstreams:
            self._answers.append(Answer("upstream", upstream.url, "silent"))
        with trio.move_on_after(ASK_SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._peers, wanted)
                for upstream, answer in zip(self.upstreams, self._answers[1:], strict=True):
                    nursery.start_soon(_ask, upstream, wanted, answer)
        return self._report(text)

    def _here(self, wanted: str) -> Answer:
        record = self.store.record(wanted)
        if record is None:
            return Answer("store", "this machine", "no")
        whole = held_manifest(self.store, record) is not None
        detail = "" if whole else "known, but not all of its blocks are here"
        return Answer("store", "this machine", "yes", record, detail, has_nar=whole)

    async def _peers(self, wanted: str) -> None:
        began = trio.current_time()
        offers = await self.swarm.questions.find(wanted, ASK_SECONDS_MAX)
        seconds = trio.current_time() - began
        if not offers:
            self._answers.append(Answer("peers", "the peers", "no", seconds=seconds))
        self._answers += [
            Answer("peer", str(peer), "yes", record, "", seconds, record.manifest != NO_MANIFEST)
            for peer, record in offers
        ]

    def _report(self, text: str) -> Report:
        heard = unite(self._answers)
        for one in heard:
            self.saw(one.record, self._judge(one).counting)
        contents = [self._content(one) for one in heard]
        contents.sort(key=lambda content: not content["admitted"])
        best = contents[0] if contents else {}
        admitted = bool(best.get("admitted")) and best.get("comes_from") != "nowhere"
        return {
            "store_path": next((one.record.store_path for one in heard), text),
            "admitted": admitted,
            "contents": contents,
            "sources": [_source(answer) for answer in self._answers],
            "advice": [] if admitted else self._advice(contents),
        }

    def _content(self, heard: Heard) -> Report:
        record = heard.record
        judgement, admitted = self._judge(heard), admitted_by(record, self._policies(heard))
        by = ""
        if admitted is not None:
            by = judgement.admitted_by if admitted.vouched else "its content address"
        return {
            "nar_hash": f"sha256:{nix32_encode(record.nar_hash)}",
            "nar_size": record.nar_size,
            "references": len(record.references),
            "content_address": record.content_address,
            "signers": [
                {"key": key, "standing": worth, "only_for": self._only_for(key)}
                for key, worth in judgement.signers
            ],
            "admitted": bool(by),
            "admitted_by": by,
            "reasons": [] if by else list(judgement.reasons),
            "comes_from": self._comes_from(record),
        }

    def _policies(self, heard: Heard) -> list[Policy]:
        own = sorted(heard.sources & self.policies_of.keys())
        return [self.policy, *(self.policies_of[url] for url in own)]

    def _judge(self, heard: Heard) -> Judgement:
        """By the policy that admits it, else the one with which most signatures count."""
        judgements = [policy.judge(heard.record) for policy in self._policies(heard)]
        return max(judgements, key=lambda one: (bool(one.admitted_by), len(one.counting)))

    def _only_for(self, key: str) -> list[str]:
        """The upstreams for whose word alone this key counts; none where it counts for all."""
        if key in self.policy.keys.keys:
            return []
        return [url for url, policy in self.policies_of.items() if key in policy.keys.keys]

    def _comes_from(self, record: PathRecord) -> str:
        """In the order in which `delivery` tries them."""
        having = [
            answer
            for answer in self._answers
            if answer.record is not None
            and answer.has_nar
            and (answer.record.nar_hash, answer.record.nar_size)
            == (record.nar_hash, record.nar_size)
        ]
        for kind in ("store", "peer", "upstream"):
            names = [answer.name for answer in having if answer.kind == kind]
            if names:
                return " and ".join(names) if kind == "peer" else names[0]
        return "nowhere"

    def _advice(self, contents: list[Report]) -> list[str]:
        if not contents:
            return self._where_to_look()
        advice = []
        if any(content["admitted"] for content in contents):
            advice.append("the signatures are enough, but nobody who was asked has the NAR: add a "
                          "cache that has it to upstreams, or ask again")  # fmt: skip
        unknown = {
            str(signer["key"])
            for content in contents
            for signer in content["signers"]  # type: ignore[attr-defined]
            if signer["standing"] == "unknown" and not signer["only_for"]
        }
        if any("denied_paths" in str(content["reasons"]) for content in contents):
            advice.append("take it out of denied_paths if it may be used again")
        elif any("disagree" in str(content["reasons"]) for content in contents):
            advice.append("find out which builder is wrong (nix build --rebuild) and put its key "
                          "into denied_keys; conflicts = 'report' serves it meanwhile")  # fmt: skip
        elif unknown:
            advice.append(f"if you trust {' or '.join(sorted(unknown))}: narswarm keys add, or put "
                          "the public key into trusted_public_keys")  # fmt: skip
        elif not advice:
            advice.append("add an upstream that has the missing signatures (a builder writes them "
                          "with narswarm sign), or change the rule in [[trust]]")  # fmt: skip
        return advice

    def _where_to_look(self) -> list[str]:
        if any(answer.says in ("error", "silent") for answer in self._answers):
            return ["some sources could not say; ask again when they can"]
        return ["nobody who was asked has it: build it, or add a cache that has it to upstreams"]


def unite(answers: Iterable[Answer]) -> list[Heard]:
    """What all said, by content, as a look-up unites it."""
    search = Search("", lambda record, sources: None)
    for answer in answers:
        if answer.record is not None:
            search.said(answer.name, answer.record, answer.info)
    return search.heard()


async def _ask(upstream: Upstream, wanted: str, answer: Answer) -> None:
    began = trio.current_time()
    try:
        info = await upstream.narinfo(wanted)
    except UpstreamError as error:
        answer.says, answer.detail = "error", str(error)
    else:
        answer.says = "no" if info is None else "yes"
        if info is not None:
            answer.record, answer.info = record_of(info), info
            answer.has_nar = info.url != SIGNATURES_ONLY_URL
            answer.detail = "" if answer.has_nar else "signatures only, no NAR"
    answer.seconds = trio.current_time() - began


def _source(answer: Answer) -> Report:
    record = answer.record
    return {
        "kind": answer.kind,
        "name": answer.name,
        "says": answer.says,
        "detail": answer.detail,
        "seconds": round(answer.seconds, 3),
        "has_nar": record is not None and answer.has_nar,
        "nar_hash": "" if record is None else f"sha256:{nix32_encode(record.nar_hash)}",
        "signed_by": [] if record is None else [s.partition(":")[0] for s in record.signatures],
    }
