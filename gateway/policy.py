"""Which signatures admit a path: rules over key sets, and what is denied whatever is signed. Pure.

    record -> who signed it -> whose signature counts for this name -> is one rule met?

| no rules          | any one trusted key admits any path                                       |
| rules             | the first rule that fits the name and has `need` of its keys admits it;   |
|                   | a trusted key that no rule names vouches for nothing                      |
| a denied key      | its signatures count nowhere                                              |
| a denied path     | is refused, signed or content-addressed                                   |

A rule limits what its keys may vouch for: with `paths = ["project-*"]` the cache of a project
cannot replace `nix`. Rules are alternatives; `except_paths` leaves names to a stricter one. `need`
counts keys, not names of keys or signatures: one key under two names is one builder.

Patterns are those of the shell (fnmatch), match the whole name behind the hash, and know capitals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from chunker.digest import NIX32_ALPHABET
from chunker.record import PathRecord, is_store_path, store_hash

from .errors import ConfigError
from .narinfo import fingerprint
from .signing import KeyRing

Standing = Literal["counts", "names", "denied", "wrong", "unknown"]
"""Of a signature: it counts; its key may not vouch for this name; its key is denied; it does not
hold; its key is not trusted here."""

EVERY = "*"
RULE_OF_DEFAULT = "any trusted key"
_HASH = re.compile(f"[{NIX32_ALPHABET}]{{32}}")


@dataclass(frozen=True, slots=True)
class Rule:
    """`keys`: names of trusted keys, or `*` for all of them."""

    name: str
    keys: tuple[str, ...] = (EVERY,)
    need: int = 1
    paths: tuple[str, ...] = (EVERY,)
    except_paths: tuple[str, ...] = ()

    def fits(self, store_path: str) -> bool:
        name = name_of(store_path)
        matches = EVERY in self.paths or any(fnmatchcase(name, pattern) for pattern in self.paths)
        return matches and not any(fnmatchcase(name, pattern) for pattern in self.except_paths)

    def names(self, key: str) -> bool:
        return key in self.keys or EVERY in self.keys


DEFAULT_RULES = (Rule(RULE_OF_DEFAULT),)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the signatures of one record come to."""

    admitted_by: str
    """The name of the rule, or an empty string."""
    counting: tuple[str, ...]
    """The signatures that count for this name, whether they are enough or not."""
    signers: tuple[tuple[str, Standing], ...]
    """Every signature's key name and what it is worth."""
    reasons: tuple[str, ...]
    """Why it is refused: one for each rule that was not met, or the one that forbids it."""
    forbidden: bool = False
    """It is refused whatever is signed."""


class Policy:
    """Raises ConfigError for rules that could admit nothing."""

    def __init__(
        self,
        keys: KeyRing,
        rules: Sequence[Rule] = (),
        denied_keys: Iterable[str] = (),
        denied_paths: Iterable[str] = (),
        disputed: Callable[[str], str] = lambda store_path: "",
    ) -> None:
        """`disputed`: why a store path is refused at this moment although its signatures hold, or
        an empty string (gateway.alarms)."""
        self._known = keys
        self._disputed = disputed
        self._denied_keys, self._denied_paths = tuple(denied_keys), tuple(denied_paths)
        self.keys = without(keys, self._denied_keys)
        """The trusted keys that are not denied."""
        self._rules = tuple(rules) or DEFAULT_RULES
        for rule in rules:
            self._check(rule)

    def with_keys(self, more: KeyRing) -> Policy:
        """The same with more trusted keys. Raises BadKey for another key of a known name."""
        keys = KeyRing((*self._known.keys.values(), *more.keys.values()), self._known.seals)
        rules = () if self._rules == DEFAULT_RULES else self._rules
        return Policy(keys, rules, self._denied_keys, self._denied_paths, self._disputed)

    @property
    def idle_keys(self) -> tuple[str, ...]:
        """Trusted keys that no rule names, so that they vouch for nothing."""
        return tuple(
            key for key in sorted(self.keys.keys) if not any(r.names(key) for r in self._rules)
        )

    def judge(self, record: PathRecord) -> Judgement:
        path = record.store_path
        text = fingerprint(path, record.nar_hash, record.nar_size, record.references)
        fitting = self._fitting(path)
        good = self._known.verified(text, record.signatures)
        signers: list[tuple[str, Standing]] = []
        counting: list[str] = []
        for one in dict.fromkeys(record.signatures):
            name = _key_name(one)
            worth = self._standing(name, one in good, fitting)
            signers.append((name, worth))
            if worth == "counts":
                counting.append(one)
        told = tuple(counting), tuple(signers)
        if forbidden := self.forbids(path):
            return Judgement("", *told, (forbidden,), forbidden=True)
        reasons = [] if fitting else [f"no rule fits the name {name_of(path)}"]
        for rule in fitting:
            signed = {name for name, worth in signers if worth == "counts" and rule.names(name)}
            if len({self.keys.keys[name].key for name in signed}) >= rule.need:
                return Judgement(rule.name, *told, ())
            reasons.append(self._missing(rule, signed))
        return Judgement("", *told, tuple(reasons))

    def _fitting(self, store_path: str) -> Sequence[Rule]:
        if self._rules is DEFAULT_RULES:
            return DEFAULT_RULES  # it fits every name
        return [rule for rule in self._rules if rule.fits(store_path)]

    def forbids(self, store_path: str) -> str:
        """Why nothing could admit this path, or an empty string."""
        return self.denies(store_path) or self._disputed(store_path)

    def denies(self, store_path: str) -> str:
        """Why the configuration refuses this path, for ever; or an empty string."""
        for entry in self._denied_paths:
            if _is_meant(entry, store_path):
                return f"denied_paths has {entry!r}"
        return ""

    def vouched(self, record: PathRecord) -> bool:
        """At least one signature counts, enough or not: it is worth passing on and asking about."""
        judgement = self.judge(record)
        return bool(judgement.counting) and not judgement.forbidden

    def suffices(self, record: PathRecord) -> bool:
        """Whether signatures alone admit it."""
        return bool(self.judge(record).admitted_by)

    def publishes(self, record: PathRecord, publish: KeyRing) -> bool:
        """Whether one of our publish keys signed it, and nothing denies it."""
        text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
        return not self.denies(record.store_path) and bool(
            publish.verified(text, record.signatures)
        )

    def _standing(self, name: str, holds: bool, fitting: Sequence[Rule]) -> Standing:
        if name not in self._known.keys:
            return "unknown"
        if name not in self.keys.keys:
            return "denied"
        if not holds:
            return "wrong"
        return "counts" if any(rule.names(name) for rule in fitting) else "names"

    def _missing(self, rule: Rule, signed: set[str]) -> str:
        if rule.name == RULE_OF_DEFAULT:
            return "no trusted key signed it"
        missing = [key for key in self._keys_of(rule) if key not in signed]
        have = f"has {', '.join(sorted(signed))}" if signed else "has none"
        need = f"needs {rule.need} of {', '.join(self._keys_of(rule))}"
        return f"rule {rule.name!r} {need}; it {have}; missing: {', '.join(missing)}"

    def _keys_of(self, rule: Rule) -> list[str]:
        return [key for key in sorted(self.keys.keys) if rule.names(key)]

    def _check(self, rule: Rule) -> None:
        for key in rule.keys:
            if key != EVERY and key not in self._known.keys:
                known = ", ".join(sorted(self._known.keys)) or "none"
                raise ConfigError(
                    f"the trust rule {rule.name!r} names {key!r}, but no trusted key is called so; "
                    f"add it to trusted_public_keys or correct the name (known: {known})"
                )
        usable = {self.keys.keys[key].key for key in self._keys_of(rule)}
        if len(usable) < rule.need:
            raise ConfigError(
                f"the trust rule {rule.name!r} needs {rule.need} keys, but has {len(usable)} "
                "that differ and are not denied, so it could admit nothing; add keys or lower need"
            )


def without(keys: KeyRing, denied_keys: Iterable[str]) -> KeyRing:
    """A key is denied by its name, or under any name by what follows the colon."""
    denied = {entry[entry.find(":") :] if ":" in entry else entry for entry in denied_keys}
    left = (
        key
        for key in keys.keys.values()
        if denied.isdisjoint((key.name, key.text[key.text.find(":") :]))
    )
    return KeyRing(left, keys.seals)


def any_of(keys: KeyRing) -> Policy:
    """The policy of who configured none: any one trusted key."""
    return Policy(keys)


def name_of(store_path: str) -> str:
    return store_path.rpartition("/")[2][33:]


def denied_path(text: str) -> str:
    """An entry of denied_paths, checked. Raises ConfigError."""
    if "/" in text and not is_store_path(text):
        raise ConfigError(
            f"{text!r} is no store path; give one (/nix/store/HASH-NAME), the HASH alone, or a "
            "pattern of names such as 'xz-5.6.[01]*'"
        )
    return text


def _is_meant(entry: str, store_path: str) -> bool:
    if "/" in entry:
        return entry == store_path
    if _HASH.fullmatch(entry):
        return entry == store_hash(store_path)
    return fnmatchcase(name_of(store_path), entry)


def _key_name(signature: str) -> str:
    return signature.partition(":")[0]
