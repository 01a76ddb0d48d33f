"""Two builders that we trust made different things of one recipe: seen, remembered, told. Pure.

    a record with signatures that count --> remembered: which key signed which NarHash
    another key signed another NarHash for the same path --> a conflict

Either the build is not reproducible, or one of the builders is not what we think it is: nothing
here can tell which, so it is shown, and where `conflicts = "refuse"` the path is refused until
one of the keys is denied, for a denied key's word is forgotten. A key that alone signed two
contents made its build anew; that is no disagreement of two. A path that is content-addressed is
what its content is, whoever signs.

What was seen is bounded and forgotten with the process. Conflicts are written down beside the
store: otherwise a restart would admit again what was refused.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from chunker.digest import NarHash, nix32_decode, nix32_encode
from chunker.record import PathRecord, is_store_path

from .content_address import recomputes

PATHS_SEEN_MAX = 20_000
"""Some 500 bytes each."""
CONFLICTS_MAX = 1000
"""Of more the oldest are forgotten."""
CONTENTS_PER_PATH_MAX = 8

Seen = dict[NarHash, tuple[str, ...]]
"""Which keys signed which content, in the order in which they were seen."""


@dataclass(frozen=True, slots=True)
class Conflict:
    store_path: str
    since_seconds: int
    """Of Unix time."""
    contents: tuple[tuple[NarHash, tuple[str, ...]], ...]

    @property
    def text(self) -> str:
        sides = (
            f"{' and '.join(keys)} signed sha256:{nix32_encode(content)}"
            for content, keys in self.contents
        )
        return f"trusted keys disagree on its content: {'; '.join(sides)}"


class Alarms:
    """`now_seconds` is Unix time."""

    def __init__(self, conflicts: Iterable[Conflict] = (), *, refuses: bool = False) -> None:
        self.conflicts = {conflict.store_path: conflict for conflict in conflicts}
        self._refuses = refuses
        self._seen: dict[str, Seen] = {
            path: dict(conflict.contents) for path, conflict in self.conflicts.items()
        }

    def saw(self, now_seconds: float, record: PathRecord, keys: Iterable[str]) -> Conflict | None:
        """`keys`: those whose signatures on the record count. The conflict if that is news."""
        path, keys = record.store_path, tuple(keys)
        if not keys or recomputes(record):
            return None
        seen = self._seen.setdefault(path, {})
        if len(seen) >= CONTENTS_PER_PATH_MAX and record.nar_hash not in seen:
            return None
        before = seen.get(record.nar_hash, ())
        after = tuple(dict.fromkeys((*before, *keys)))
        seen[record.nar_hash] = after
        while len(self._seen) > PATHS_SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        if after == before or not _disagree(seen):
            return None
        known = self.conflicts.pop(path, None)
        since = int(now_seconds) if known is None else known.since_seconds
        self.conflicts[path] = conflict = Conflict(path, since, tuple(seen.items()))
        while len(self.conflicts) > CONFLICTS_MAX:
            del self.conflicts[next(iter(self.conflicts))]
        return conflict

    def disputed(self, store_path: str) -> str:
        """Why it is refused (`Policy.forbids`), or an empty string."""
        conflict = self.conflicts.get(store_path) if self._refuses else None
        return "" if conflict is None else conflict.text


def _disagree(seen: Mapping[NarHash, tuple[str, ...]]) -> bool:
    """Two contents and two keys. A key that signed both does not settle it: it may be the liar."""
    return len(seen) > 1 and len({key for keys in seen.values() for key in keys}) > 1


def encode(conflicts: Iterable[Conflict]) -> str:
    return json.dumps([report(conflict) for conflict in conflicts], indent=1) + "\n"


def report(conflict: Conflict) -> dict[str, object]:
    return {
        "store_path": conflict.store_path,
        "since_seconds": conflict.since_seconds,
        "contents": [
            {"nar_hash": f"sha256:{nix32_encode(content)}", "keys": list(keys)}
            for content, keys in conflict.contents
        ],
    }


def decode(text: str, trusted: Container[str]) -> list[Conflict]:
    """What `encode` wrote, as far as it is still one between `trusted` keys. Raises ValueError."""
    found = []
    try:
        for one in json.loads(text)[-CONFLICTS_MAX:]:
            contents = {
                NarHash(nix32_decode(content["nar_hash"].removeprefix("sha256:"))): tuple(
                    key for key in content["keys"] if key in trusted
                )
                for content in one["contents"][:CONTENTS_PER_PATH_MAX]
            }
            if not is_store_path(one["store_path"]):
                raise ValueError(f"{one['store_path']!r:.80} is no store path")
            contents = {content: keys for content, keys in contents.items() if keys}
            if _disagree(contents):
                found.append(
                    Conflict(one["store_path"], int(one["since_seconds"]), tuple(contents.items()))
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a list of conflicts: {error!r}") from error
    return found
