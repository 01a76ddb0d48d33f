"""Nine upstreams of which one is good: a real Nix gets its closure, and nothing that is not signed.

How much longer that takes than from the good one alone is `python -m benchmarks nine`.
"""

from __future__ import annotations

from collections import Counter

from benchmarks.bad_caches import KINDS, BadCaches
from gateway.breaker import FAILURES_MAX
from tests.interop.conftest import Office
from tests.interop.test_office_fetch import Cache, cache

__all__ = ["cache"]


def test_nix_gets_its_closure_from_the_one_good_upstream_among_nine(
    office: Office, cache: Cache
) -> None:
    with BadCaches(office.closure.cache) as bad:
        assert len(bad.options) == 2 * len(KINDS) == 16
        gateway = office.start(
            "gateway", "gateway", *bad.options, *cache.upstream("good"),
            environment=bad.environment,
        )  # fmt: skip
        # One NAR at a time, as Nix before 2.14: what is under way already counts nowhere.
        office.substitute("client", gateway.url, more="max-substitution-jobs = 1")
        office.verify("client")
        asked = bad.asked
        assert asked["private"] == 0
        assert asked["unsigned narinfo"] and asked["foreign narinfo"]
        assert asked["unsigned nar"] == asked["foreign nar"] == 0, "nothing that nobody signed"
        # One that lies rests at once; one whose NARs fail, after a few. What is under way then is a
        # NAR and those that refer to it, which the gateway begins with it (gateway/prefetch.py).
        referrers = Counter(
            reference
            for path, info in office.closure.infos.items()
            for reference in info["references"]
            if not path.endswith(reference)
        )
        begun = 1 + max(referrers.values())
        assert begun == 3 and asked["truncated nar"] <= begun
        assert asked["redirects nar"] < FAILURES_MAX + begun
        assert asked["hangs nar"] == asked["errors nar"] == 0
    assert "Traceback" not in gateway.log.read_text()
