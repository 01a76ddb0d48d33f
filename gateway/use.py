"""`narswarm use`: one marked block in nix.conf that makes Nix ask the gateway, and its removal.

    # narswarm use (take it out again with: narswarm use --undo)
    extra-substituters = http://127.0.0.1:8555
    extra-trusted-public-keys = office-1:...
    # narswarm use: end

Whose file: root's is the system's (all users), anybody else's their own. A daemon heeds a user's
own substituters and keys only where `trusted-users` names them; without that Nix says "ignoring
untrusted substituter" at every call, so nothing is written and the way out is said instead. Files
that Nix itself made (NixOS, home-manager) are never touched: there the lines go into the
configuration that makes them.
"""

from __future__ import annotations

import difflib
import grp
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import nixconf
from .errors import UsageError
from .files import read_text, remove, replace_text

BEGIN = "# narswarm use (take it out again with: narswarm use --undo)"
END = "# narswarm use: end"
DAEMON_SOCKET = Path("/nix/var/nix/daemon-socket/socket")
STORE_DIRECTORY = Path("/nix/store")


@dataclass(frozen=True)
class Plan:
    """What would change: `old` and `new` are the whole file; equal when there is nothing to do."""

    file: Path
    old: str
    new: str

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.old.splitlines(), self.new.splitlines(), str(self.file), str(self.file),
            lineterm="", n=2,
        )  # fmt: skip
        return "\n".join(lines)


def with_block(text: str, lines: Sequence[str]) -> str:
    """`text` with the block of these lines: in its old place, or at the end. Pure. Raises
    UsageError for a block without an end."""
    before, found, after = _split(text)
    block = "\n".join((BEGIN, *lines, END)) + "\n"
    if not found and before:
        before = before.rstrip("\n") + "\n\n"
    return before + block + after


def without_block(text: str) -> str:
    """Pure. Raises UsageError for a block without an end."""
    before, found, after = _split(text)
    if not found:
        return text
    return before.rstrip("\n") + ("\n" if before.strip() else "") + after


def _split(text: str) -> tuple[str, bool, str]:
    lines = text.splitlines(keepends=True)
    bare = [line.strip() for line in lines]
    if BEGIN not in bare:
        return text, False, ""
    begin = bare.index(BEGIN)
    if END not in bare[begin:]:
        raise UsageError(
            f"a block that begins with {BEGIN!r} has no end; put a line {END!r} behind it"
        )
    end = bare.index(END, begin)
    return "".join(lines[:begin]), True, "".join(lines[end + 1 :])


def settings_for(url: str, keys: Sequence[str], other: nixconf.NixSettings) -> list[str]:
    """The lines of the block: what the rest of the configuration does not say yet. Pure."""
    lines = []
    if url not in other.substituters:
        lines.append(f"extra-substituters = {url}")
    if missing := [key for key in keys if key not in other.trusted_public_keys]:
        lines.append(f"extra-trusted-public-keys = {' '.join(missing)}")
    return lines


def make_plan(file: Path, url: str, keys: Sequence[str], files: Sequence[Path]) -> Plan:
    """`files`: all that Nix reads, in its order, `file` among them. Raises UsageError or
    ConfigError."""
    old = read_text(file)
    bare = without_block(old)
    other = nixconf.read_texts([(path, bare if path == file else None) for path in files])
    lines = settings_for(url, keys, other)
    return Plan(file, old, with_block(old, lines) if lines else bare)


def undo_plan(file: Path) -> Plan:
    old = read_text(file)
    return Plan(file, old, without_block(old))


def is_made_by_nix(file: Path) -> bool:
    """A link into the Nix store: NixOS or home-manager made it and would make it again."""
    return file.is_symlink() and str(os.path.realpath(file)).startswith(f"{STORE_DIRECTORY}/")


def write(plan: Plan) -> None:
    """A file that would be empty is removed. Raises UsageError; then nothing is changed."""
    target = Path(os.path.realpath(plan.file))
    if plan.new:
        replace_text(target, plan.new)
    else:
        remove(target)


def may_choose(
    settings: nixconf.NixSettings,
    url: str,
    keys: Sequence[str],
    user: str,
    groups: Sequence[str],
) -> bool:
    """Whether a daemon heeds this user's choice of `url` and `keys`. Pure; `trusted-users` as Nix
    reads it: names, `@group`, `*`. What `trusted-substituters` names anybody may choose, but keys
    nobody: they must be trusted already."""
    trusted = settings.trusted_users
    if "*" in trusted or user in trusted or any(f"@{group}" in trusted for group in groups):
        return True
    known = settings.trusted_public_keys
    return url in settings.trusted_substituters and all(key in known for key in keys)


def who_am_i() -> tuple[str, list[str]]:
    """Name and groups of the user of this process."""
    groups = []
    for number in {os.getgid(), *os.getgroups()}:
        try:
            groups.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    try:
        return pwd.getpwuid(os.geteuid()).pw_name, groups
    except KeyError:
        return str(os.geteuid()), groups


def store_is_ours(store: Path = STORE_DIRECTORY) -> bool:
    """A single-user Nix, or root: no daemon decides what is trusted."""
    return os.geteuid() == 0 or os.access(store, os.W_OK)


def untrusted_advice(user: str, url: str, keys: Sequence[str], file: Path) -> str:
    """What to do for a user whom the Nix daemon does not trust; `file` is the system's."""
    key_line = f"\n      extra-trusted-public-keys = {' '.join(keys)}" if keys else ""
    return (
        f'the Nix daemon does not trust {user}: it would say "ignoring untrusted substituter '
        f"'{url}'\" and not ask the gateway. Nothing is written. Either of these helps:\n"
        f"  for everybody on this machine:  sudo narswarm use\n"
        f"  for whoever wants it:           root adds to {file}\n"
        f"      extra-trusted-substituters = {url}{key_line}\n"
        f"    and you run narswarm use again"
    )


def nixos_advice(file: Path, url: str, keys: Sequence[str]) -> str:
    lines = [f'  nix.settings.extra-substituters = [ "{url}" ];']
    if keys:
        quoted = " ".join(f'"{key}"' for key in keys)
        lines.append(f"  nix.settings.extra-trusted-public-keys = [ {quoted} ];")
    return (
        f"{file} is made by Nix, which would make it again without this change. Nothing is "
        "written; put this into the configuration that makes it, and rebuild:\n" + "\n".join(lines)
    )
