"""Yamux: many streams over one connection, as a machine without I/O.

    plain bytes --feed--> streams that changed, streams that the peer opened
    open, write, take, close, reset --> frames in `outgoing` --drain--> plain bytes

Wire format: https://github.com/hashicorp/yamux/blob/master/spec.md (a 12-byte header: version,
type, flags, stream, length). Two rules beyond it, both invisible on the wire:

- What the peer may send is enforced: a byte beyond the window ends the connection.
- A window starts at the 256 KiB of the specification and doubles, up to 8 MiB, only while our
  reader keeps up, and only within what one connection may hold; so what is not read can make us
  keep no more than STREAMS_INBOUND_MAX windows of the smallest size.

Time comes from the caller (seconds of any steady clock).
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

from chunker.digest import Bytes

HEADER = struct.Struct("!BBHII")
DATA, WINDOW_UPDATE, PING, GO_AWAY = 0, 1, 2, 3
SYN, ACK, FIN, RST = 1, 2, 4, 8
GO_AWAY_NORMAL, GO_AWAY_PROTOCOL_ERROR = 0, 1

WINDOW_BYTES_MIN = 256 * 1024
WINDOW_BYTES_MAX = 8 * 1024 * 1024
GROWTH_BYTES_MAX = 16 * 1024 * 1024
"""Of all windows of a connection, beyond WINDOW_BYTES_MIN each."""
FRAME_BYTES_MAX = 1024 * 1024
"""Of a data frame that we send; a received one may be as long as its window."""
OUTGOING_BYTES_MAX = 4 * 1024 * 1024
"""Data frames, headers included, that wait for the socket; writers wait while there is more."""
CONTROL_BYTES_MAX = 64 * 1024
"""Frames without data that wait for a peer that does not read; then the connection ends."""
STREAMS_INBOUND_MAX = 64
KEPT_SHARE = 4
"""A piece that is at least this part of what came at once stays where it is, others are copied and
joined: what waits for a reader costs at most this many times its bytes."""
SMALL_BYTES = 4096
PING_SECONDS = 30.0
SILENCE_SECONDS_MAX = 60.0
LINGER_SECONDS_MAX = 60.0
"""How long a stream that we closed waits for the peer to close it too."""


class YamuxError(Exception):
    """The peer broke the protocol, or no longer answers: the connection is over."""


@dataclass(slots=True, eq=False)
class YamuxStream:
    """`ended`: the peer sends no more; `finished`: we send no more; `broken`: reset by either."""

    id: int
    sendable: int = WINDOW_BYTES_MIN
    window: int = WINDOW_BYTES_MIN
    credit: int = WINDOW_BYTES_MIN
    queue: deque[memoryview | bytearray] = field(default_factory=deque)
    taken: int = 0
    """Bytes of the first piece that were read."""
    queued: int = 0
    ended: bool = False
    finished: bool = False
    broken: bool = False
    finished_at: float = 0.0


class Yamux:
    def __init__(self, *, is_initiator: bool, now: float) -> None:
        self.streams: dict[int, YamuxStream] = {}
        self.gone_away = False
        """The peer opens and accepts no more streams."""
        self.outgoing_bytes = 0
        self._outgoing: list[bytes | memoryview] = []
        self._control_bytes = 0
        self._frame_of: YamuxStream | None = None
        self._frame_at = 0
        self._frame_bytes = 0
        self._next = 1 if is_initiator else 2
        self._inbound = 0
        self._grown = 0
        self._heard_at = now
        self._pinged_at = now
        self._pings = 0
        self._head = bytearray()
        self._left = 0
        self._into: YamuxStream | None = None
        self._flags = 0
        self._arrived: list[YamuxStream] = []
        self._changed: set[YamuxStream] = set()

    @property
    def has_outgoing(self) -> bool:
        return bool(self._outgoing)

    @property
    def missing_bytes(self) -> int:
        """Of the data frame that has begun to come."""
        return self._left

    # -- what comes from the peer ------------------------------------------------------------

    def feed(self, data: memoryview, now: float) -> tuple[list[YamuxStream], set[YamuxStream]]:
        """(streams the peer opened, streams that changed); `data` is kept where it is long, so it
        must not be written to again. Raises YamuxError."""
        self._heard_at = now
        self._arrived, self._changed = [], set()
        at, size = 0, len(data)
        while at < size:
            if self._left:
                end = min(size, at + self._left)
                self._deliver(data, at, end)
                at = end
                continue
            if self._head or size - at < HEADER.size:
                part = data[at : at + HEADER.size - len(self._head)]
                self._head += part
                at += len(part)
                if len(self._head) < HEADER.size:
                    break
                head = HEADER.unpack(self._head)
                self._head.clear()
            else:
                head = HEADER.unpack_from(data, at)
                at += HEADER.size
            self._frame(*head)
        return self._arrived, self._changed

    def _frame(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != 0:
            raise YamuxError(f"a frame of version {version}")
        if kind == DATA:
            stream = self._stream(stream_id, flags)
            if length > (WINDOW_BYTES_MAX if stream is None else stream.credit):
                raise YamuxError(f"{length} bytes of data beyond the window")
            if stream is not None:
                stream.credit -= length
            self._into, self._left, self._flags = stream, length, flags
            if not length:
                self._apply(stream, flags)
        elif kind == WINDOW_UPDATE:
            stream = self._stream(stream_id, flags)
            if stream is not None:
                stream.sendable = min(stream.sendable + length, 0xFFFFFFFF)
            self._apply(stream, flags)
        elif kind == PING:
            if flags & SYN:
                self._control(PING, ACK, 0, length)
        elif kind == GO_AWAY:
            if length != GO_AWAY_NORMAL:
                raise YamuxError(f"the peer ended the connection with code {length}")
            self.gone_away = True
        else:
            raise YamuxError(f"a frame of unknown type {kind}")

    def _stream(self, stream_id: int, flags: int) -> YamuxStream | None:
        """None: a stream that is over here, or one too many; what comes for it is dropped."""
        stream = self.streams.get(stream_id)
        if not flags & SYN:
            return stream
        if stream is not None or stream_id == 0 or stream_id % 2 == self._next % 2:
            raise YamuxError(f"stream {stream_id} is not the peer's to open")
        if self._inbound >= STREAMS_INBOUND_MAX:
            self._control(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        self._inbound += 1
        stream = self.streams[stream_id] = YamuxStream(stream_id)
        self._control(WINDOW_UPDATE, ACK, stream_id, 0)
        self._arrived.append(stream)
        return stream

    def _deliver(self, data: memoryview, start: int, end: int) -> None:
        stream = self._into
        self._left -= end - start
        if stream is not None and not stream.ended and not stream.broken:
            tail = stream.queue[-1] if stream.queue else None
            if end - start >= len(data) // KEPT_SHARE:
                stream.queue.append(data[start:end])
            elif isinstance(tail, bytearray) and len(tail) < SMALL_BYTES:
                tail += data[start:end]
            else:
                stream.queue.append(bytearray(data[start:end]))
            stream.queued += end - start
            self._changed.add(stream)
        if not self._left:
            self._apply(stream, self._flags)

    def _apply(self, stream: YamuxStream | None, flags: int) -> None:
        if stream is None:
            return
        if flags & RST:
            stream.broken = stream.ended = True
            stream.queue.clear()
            stream.queued = 0
            self._forget(stream)
        elif flags & FIN:
            stream.ended = True
            if stream.finished:
                self._forget(stream)
        self._changed.add(stream)

    def _forget(self, stream: YamuxStream) -> None:
        if self.streams.pop(stream.id, None) is not None:
            self._grown -= stream.window - WINDOW_BYTES_MIN
            self._inbound -= stream.id % 2 != self._next % 2

    # -- what we do --------------------------------------------------------------------------

    def open(self) -> YamuxStream:
        """Raises YamuxError when the peer takes no more."""
        if self.gone_away:
            raise YamuxError("the peer takes no more streams")
        stream = self.streams[self._next] = YamuxStream(self._next)
        self._next += 2
        self._control(WINDOW_UPDATE, SYN, stream.id, 0)
        return stream

    def write(self, stream: YamuxStream, data: Bytes) -> int:
        """How many bytes were taken; 0: wait until the stream changed, or the outgoing bytes left.
        Raises YamuxError if the stream carries no more."""
        if stream.broken or stream.finished:
            raise YamuxError(f"stream {stream.id} is closed for writing")
        if self.outgoing_bytes >= OUTGOING_BYTES_MAX:
            return 0
        size = min(len(data), stream.sendable, FRAME_BYTES_MAX)
        if not size:
            return 0
        stream.sendable -= size
        self.outgoing_bytes += size
        if self._frame_of is stream and self._frame_bytes + size <= FRAME_BYTES_MAX:
            self._frame_bytes += size  # what was written in pieces leaves in one frame
        else:
            self._frame_of, self._frame_at = stream, len(self._outgoing)
            self._frame_bytes = size
            self.outgoing_bytes += HEADER.size
            self._outgoing.append(b"")
        self._outgoing[self._frame_at] = HEADER.pack(0, DATA, 0, stream.id, self._frame_bytes)
        self._outgoing.append(data if size == len(data) else memoryview(data)[:size])
        return size

    def take(self, stream: YamuxStream, bytes_max: int) -> memoryview:
        """What arrived, at most `bytes_max`, in no more than one piece; empty where nothing did."""
        if not stream.queue:
            return memoryview(b"")
        if isinstance(first := stream.queue[0], bytearray):
            first = stream.queue[0] = memoryview(first)  # no longer grows
        data = first[stream.taken : stream.taken + bytes_max]
        stream.taken += len(data)
        if stream.taken == len(first):
            stream.queue.popleft()
            stream.taken = 0
        stream.queued -= len(data)
        self._grant(stream)
        return data

    def _grant(self, stream: YamuxStream) -> None:
        """Let the peer send on, once half of the window was read."""
        if stream.ended or stream.window - stream.queued - stream.credit < stream.window // 2:
            return
        growth = min(stream.window, WINDOW_BYTES_MAX - stream.window)
        if (
            stream.queued <= stream.window // 4
            and growth
            and self._grown + growth <= GROWTH_BYTES_MAX
        ):
            stream.window += growth
            self._grown += growth
        grant = stream.window - stream.queued - stream.credit
        stream.credit += grant
        self._control(WINDOW_UPDATE, 0, stream.id, grant)

    def finish(self, stream: YamuxStream, now: float) -> None:
        """Send no more; what the peer sends is still read."""
        if stream.finished or stream.broken:
            return
        stream.finished = True
        stream.finished_at = now
        self._control(WINDOW_UPDATE, FIN, stream.id, 0)
        if stream.ended:
            self._forget(stream)

    def reset(self, stream: YamuxStream) -> None:
        if stream.broken:
            return
        if stream.id in self.streams:
            self._control(WINDOW_UPDATE, RST, stream.id, 0)
        stream.broken = stream.ended = stream.finished = True
        stream.queue.clear()
        stream.queued = 0
        self._forget(stream)

    def tick(self, now: float) -> list[YamuxStream]:
        """Keep the connection alive; the streams given up. Raises YamuxError where the peer is
        silent."""
        if now - self._heard_at > SILENCE_SECONDS_MAX:
            raise YamuxError(f"the peer was silent for {SILENCE_SECONDS_MAX:.0f} s")
        if now - max(self._heard_at, self._pinged_at) >= PING_SECONDS:
            self._pings += 1
            self._pinged_at = now
            self._control(PING, SYN, 0, self._pings & 0xFFFFFFFF)
        late = [
            stream
            for stream in self.streams.values()
            if stream.finished and now - stream.finished_at > LINGER_SECONDS_MAX
        ]
        for stream in late:
            self.reset(stream)
        return late

    def go_away(self, code: int) -> None:
        self._outgoing.append(HEADER.pack(0, GO_AWAY, 0, 0, code))
        self._frame_of = None

    def drain(self) -> list[bytes | memoryview]:
        """The frames to send, in order; each piece is a header or a frame's data."""
        outgoing, self._outgoing = self._outgoing, []
        self._frame_of = None
        self.outgoing_bytes = self._control_bytes = 0
        return outgoing

    def _control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        self._control_bytes += HEADER.size
        if self._control_bytes > CONTROL_BYTES_MAX:
            raise YamuxError("the peer asks for answers and does not read them")
        self._outgoing.append(HEADER.pack(0, kind, flags, stream_id, value))
        self._frame_of = None
