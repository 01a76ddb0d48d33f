"""Everything that can go wrong between peers; who did wrong is in the type."""

from __future__ import annotations


class PeerError(Exception):
    """Base of every error of this package."""


class RemoteError(PeerError):
    """The other side broke the protocol."""


class WireError(RemoteError):
    """Bytes that are no message, or one beyond its limit."""


class Unreachable(PeerError):
    """A peer could not be dialled, or another one answered at its address."""


class CannotListen(PeerError):
    """An address to listen on is taken or not this machine's."""


class SessionClosed(PeerError):
    """The stream is gone; whatever was asked on it will not be answered."""


class IdentityError(PeerError):
    """A key file, PeerId or address is not usable; the message says what to do."""


class NotHere(PeerError):
    """The thing asked for is not to be had."""
