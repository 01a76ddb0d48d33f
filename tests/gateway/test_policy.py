"""Which signatures admit a path: rules, names, k-of-n, denied keys and paths, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chunker.digest import NarHash
from chunker.record import PathRecord
from gateway.errors import ConfigError, NotTrusted
from gateway.narinfo import fingerprint
from gateway.policy import Policy, Rule, any_of
from gateway.seeding import NO_MANIFEST
from gateway.signing import KeyRing, PublicKey, SecretKey
from gateway.trust import admit

CACHE = SecretKey("cache-1", b"c" * 32)
BUILDER = SecretKey("builder-2", b"b" * 32)
PROJECT = SecretKey("project-1", b"p" * 32)
FOREIGN = SecretKey("foreign-1", b"f" * 32)
RING = KeyRing((CACHE.public, BUILDER.public, PROJECT.public))
HASH = "0" * 31
BOTH = Rule("both", ("cache-1", "builder-2"), need=2)


def path(name: str = "hello-2.12", *keys: SecretKey) -> PathRecord:
    record = PathRecord(
        f"/nix/store/{HASH}1-{name}", NarHash(bytes(32)), 1000, (), (), "", NO_MANIFEST
    )
    return replace(record, signatures=tuple(sign(record, key) for key in keys))


def sign(record: PathRecord, key: SecretKey) -> str:
    return key.sign(
        fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    )


def refusal(record: PathRecord, policy: Policy) -> str:
    with pytest.raises(NotTrusted) as caught:
        admit(record, policy)
    return str(caught.value)


def names(signatures: tuple[str, ...]) -> list[str]:
    return [signature.partition(":")[0] for signature in signatures]


def test_without_rules_any_one_trusted_key_admits() -> None:
    for key in (CACHE, BUILDER, PROJECT):
        admitted = admit(path("nix-2.8", key, FOREIGN), any_of(RING))
        assert names(admitted.signatures) == [key.name] and admitted.vouched
    said = refusal(path("hello", FOREIGN), any_of(RING))
    assert "no trusted key signed it" in said and "foreign-1 (not trusted here)" in said
    assert "signed by: nobody" in refusal(path("hello"), any_of(RING))


def test_two_builders_must_agree() -> None:
    policy = Policy(RING, [BOTH])
    admitted = admit(path("hello", FOREIGN, CACHE, PROJECT, BUILDER), policy)
    assert names(admitted.signatures) == ["cache-1", "builder-2"]
    said = refusal(path("hello", CACHE, PROJECT), policy)
    assert "rule 'both' needs 2 of builder-2, cache-1; it has cache-1; missing: builder-2" in said
    assert "project-1 (may not vouch for this name)" in said
    assert "it has none; missing: builder-2, cache-1" in refusal(path("hello"), policy)


def test_one_signature_twice_is_one_builder() -> None:
    record = path("hello", CACHE)
    again = replace(record, signatures=record.signatures * 2)
    assert "missing: builder-2" in refusal(again, Policy(RING, [BOTH]))


def test_one_key_under_two_names_is_one_builder() -> None:
    twin = SecretKey("twin-1", CACHE.seed)
    ring = KeyRing((CACHE.public, twin.public, BUILDER.public))
    rule = Rule("two", ("*",), need=2)
    assert "needs 2" in refusal(path("hello", CACHE, twin), Policy(ring, [rule]))
    assert admit(path("hello", CACHE, BUILDER), Policy(ring, [rule])).vouched
    with pytest.raises(ConfigError, match="has 1 that differ"):
        Policy(ring, [Rule("two", ("cache-1", "twin-1"), need=2)])


def test_a_projects_cache_cannot_replace_nix() -> None:
    own = Rule("project", ("project-1",), paths=("project-*", "lib[ab]"))
    policy = Policy(RING, [own, Rule("the rest", ("cache-1",), except_paths=("openssl-*",)), BOTH])
    assert admit(path("project-tool-1.0", PROJECT), policy).vouched
    assert admit(path("liba", PROJECT), policy).vouched
    for name in ("nix-2.8", "bash-5", "my-project-1", "Project-1", "libc", "openssl-3"):
        assert "project-1 (may not vouch for this name)" in refusal(path(name, PROJECT), policy)
    assert admit(path("nix-2.8", CACHE), policy).vouched
    assert "rule 'both' needs 2" in refusal(path("openssl-3", CACHE), policy)
    assert admit(path("openssl-3", CACHE, BUILDER), policy).vouched


def test_a_signature_of_who_may_not_vouch_is_not_passed_on() -> None:
    policy = Policy(RING, [Rule("cache", ("cache-1",))])
    assert names(admit(path("nix", PROJECT, CACHE), policy).signatures) == ["cache-1"]
    assert policy.idle_keys == ("builder-2", "project-1")
    assert any_of(RING).idle_keys == ()


def test_no_rule_fits_the_name() -> None:
    policy = Policy(RING, [Rule("project", ("project-1",), paths=("project-*",))])
    assert "no rule fits the name nix-2.8" in refusal(path("nix-2.8", CACHE), policy)


@pytest.mark.parametrize("entry", ["cache-1", CACHE.public.text, f"other:{CACHE.public.text[8:]}"])
def test_a_denied_key_counts_nowhere(entry: str) -> None:
    policy = Policy(RING, (), [entry])
    assert "cache-1 (denied)" in refusal(path("hello", CACHE), policy)
    assert names(admit(path("hello", CACHE, BUILDER), policy).signatures) == ["builder-2"]
    assert set(policy.keys.keys) == {"builder-2", "project-1"}
    with pytest.raises(ConfigError, match="not denied"):
        Policy(RING, [BOTH], [entry])


def test_another_key_of_a_denied_keys_name_counts() -> None:
    old = PublicKey("cache-1", bytes(32))
    assert admit(path("hello", CACHE), Policy(RING, (), [old.text])).vouched


@pytest.mark.parametrize(
    "entry", [f"/nix/store/{HASH}1-xz-5.6.1", f"{HASH}1", "xz-5.6.[01]", "xz-*", "*"]
)
def test_a_denied_path_is_refused_whatever_is_signed(entry: str) -> None:
    policy = Policy(RING, (), (), [entry])
    said = refusal(path("xz-5.6.1", CACHE, BUILDER), policy)
    assert f"denied_paths has {entry!r}" in said
    assert policy.denies(path("xz-5.6.1").store_path)
    assert not policy.vouched(path("xz-5.6.1", CACHE))


@pytest.mark.parametrize(
    "entry", [f"/nix/store/{HASH}1-xz-5.6.2", f"{HASH}2", "xz", "XZ-*", "xz-5.6", "5.6.1"]
)
def test_what_is_not_meant_is_not_denied(entry: str) -> None:
    assert admit(path("xz-5.6.1", CACHE), Policy(RING, (), (), [entry])).vouched


def test_what_is_disputed_is_refused_while_it_is() -> None:
    said = ["two builders disagree"]
    policy = Policy(RING, disputed=lambda store_path: said[0])
    assert "two builders disagree" in refusal(path("hello", CACHE), policy)
    assert not policy.denies(path("hello").store_path)
    said[0] = ""
    assert admit(path("hello", CACHE), policy).vouched


def test_one_of_two_is_worth_asking_on_about() -> None:
    policy = Policy(RING, [BOTH])
    assert policy.vouched(path("hello", CACHE))
    assert not policy.vouched(path("hello", PROJECT))
    assert not policy.vouched(path("hello", FOREIGN))


def test_a_broken_signature_is_called_so() -> None:
    record = replace(path("hello", CACHE), nar_size=1001)
    assert "cache-1 (the signature does not hold)" in refusal(record, any_of(RING))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule("r", ("cache-2",)), "names 'cache-2', but no trusted key is called so"),
        (Rule("r", ("cache-1",), need=2), "needs 2 keys, but has 1"),
        (Rule("r", need=4), "needs 4 keys, but has 3"),
    ],
)
def test_rules_that_could_admit_nothing_are_refused(rule: Rule, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Policy(RING, [rule])
