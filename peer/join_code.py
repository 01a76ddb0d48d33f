"""The join code: one line of text that brings a machine into a pool. Pure.

    nsw1 base58(pool key 32 | inviter's public key 32 | token 16 | [[host, port]...] | sum 4)

It is made to be pasted; the addresses are msgpack, and the sum (of BLAKE3) finds a letter that was
lost or changed. The code is a secret until it was used or its time is over: whoever holds it may
join.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import base58
import blake3
import msgpack

from .certificates import POOL_KEY_BYTES, PoolId
from .errors import PeerError
from .identity import Address, PeerId, parse_address, peer_id_of, public_of

PREFIX = "nsw1"
TOKEN_BYTES = 16
TOKEN_SECONDS = 86400
ADDRESSES_PER_CODE_MAX = 4
CODE_CHARS_MAX = 2048
SUM_BYTES = 4
_FIXED_BYTES = POOL_KEY_BYTES * 2 + TOKEN_BYTES


class NoJoinCode(PeerError):
    """A text that is no join code; the message says what to do."""


@dataclass(frozen=True, slots=True)
class JoinCode:
    pool: PoolId
    inviter: PeerId
    token: bytes = field(repr=False)
    addresses: tuple[Address, ...]
    """All of the inviter."""

    @property
    def text(self) -> str:
        hosts = [[a.host, a.port] for a in self.addresses if a.host is not None]
        data = self.pool + public_of(self.inviter) + self.token
        data += msgpack.packb(hosts[:ADDRESSES_PER_CODE_MAX], use_bin_type=True)
        return PREFIX + base58.b58encode(data + _sum(data)).decode()


def parse_join_code(text: str) -> JoinCode:
    """White space in it does not count. Raises NoJoinCode."""
    text = "".join(text.split())
    if not text.startswith(PREFIX) or len(text) > CODE_CHARS_MAX:
        raise NoJoinCode(
            f"that is no join code: one begins with {PREFIX}; see narswarm pool invite"
        )
    try:
        data = base58.b58decode(text.removeprefix(PREFIX).encode())
    except ValueError as error:
        raise NoJoinCode("the join code has a letter that no code has; copy it again") from error
    data, checked = data[:-SUM_BYTES], data[-SUM_BYTES:]
    if len(data) <= _FIXED_BYTES or _sum(data) != checked:
        raise NoJoinCode("the join code is cut or changed; copy all of it again")
    inviter = peer_id_of(data[POOL_KEY_BYTES : 2 * POOL_KEY_BYTES])
    return JoinCode(
        PoolId(data[:POOL_KEY_BYTES]),
        inviter,
        data[2 * POOL_KEY_BYTES : _FIXED_BYTES],
        _addresses(inviter, data[_FIXED_BYTES:]),
    )


def token_digest(token: bytes) -> bytes:
    """32 bytes, as the inviter keeps it."""
    return blake3.blake3(b"narswarm-token-1\n" + token).digest()


def _addresses(inviter: PeerId, data: bytes) -> tuple[Address, ...]:
    try:
        hosts = msgpack.unpackb(
            data, raw=False, max_array_len=ADDRESSES_PER_CODE_MAX, max_map_len=0, max_ext_len=0
        )
        found = [Address(inviter, str(host), int(port)) for host, port in hosts]
        return tuple(parse_address(address.text) for address in found)
    except Exception as error:  # of msgpack, a dozen types; of ours, IdentityError
        raise NoJoinCode(f"the join code names an address that is none ({error})") from error


def _sum(data: bytes) -> bytes:
    return blake3.blake3(data).digest(length=SUM_BYTES)
