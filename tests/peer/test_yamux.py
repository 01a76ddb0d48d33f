"""The Yamux machine: two wired by hand, and one against frames that no honest peer sends."""

from __future__ import annotations

import random

import pytest

from peer.yamux import (
    ACK,
    CONTROL_BYTES_MAX,
    DATA,
    FIN,
    GO_AWAY,
    GROWTH_BYTES_MAX,
    HEADER,
    LINGER_SECONDS_MAX,
    OUTGOING_BYTES_MAX,
    PING,
    PING_SECONDS,
    RST,
    SILENCE_SECONDS_MAX,
    STREAMS_INBOUND_MAX,
    SYN,
    WINDOW_BYTES_MAX,
    WINDOW_BYTES_MIN,
    WINDOW_UPDATE,
    Yamux,
    YamuxError,
    YamuxStream,
)


def machine(*, is_initiator: bool = False) -> Yamux:
    return Yamux(is_initiator=is_initiator, now=0.0)


def frame(kind: int, flags: int, stream: int, value: int, data: bytes = b"") -> memoryview:
    return memoryview(HEADER.pack(0, kind, flags, stream, value) + data)


def drained(yamux: Yamux) -> list[tuple[int, int, int, int]]:
    """(type, flags, stream, value) of the frames to be sent; their data is left out."""
    wire, frames = b"".join(yamux.drain()), []
    while wire:
        _, kind, flags, stream, value = HEADER.unpack_from(wire)
        frames.append((kind, flags, stream, value))
        wire = wire[HEADER.size + (value if kind == DATA else 0) :]
    return frames


def opened(yamux: Yamux, stream: int = 1) -> YamuxStream:
    """A stream that the peer opened."""
    arrived, _ = yamux.feed(frame(WINDOW_UPDATE, SYN, stream, 0), 0.0)
    yamux.drain()
    return arrived[0]


def read_all(yamux: Yamux, stream: YamuxStream) -> bytes:
    data = b""
    while piece := yamux.take(stream, 100_000):
        data += piece
    return data


@pytest.mark.parametrize("seed", range(30))
def test_two_machines_carry_every_byte_in_order(seed: int) -> None:
    """Several streams both ways; the wire is cut anywhere, readers and writers take turns."""
    chance = random.Random(seed)
    sides = [machine(is_initiator=True), machine()]
    wires: list[bytearray] = [bytearray(), bytearray()]
    ends: list[dict[int, YamuxStream]] = [{}, {}]
    to_send: list[dict[int, bytes]] = [{}, {}]
    sent: list[dict[int, bytes]] = [{}, {}]
    got: list[dict[int, bytes]] = [{}, {}]
    for side in (0, 1):
        for _ in range(3):
            stream = sides[side].open()
            for end in (0, 1):
                sent[end][stream.id] = chance.randbytes(chance.randrange(700_000))
                to_send[end][stream.id] = sent[end][stream.id]
                got[end][stream.id] = b""
            ends[side][stream.id] = stream
    for _ in range(100_000):
        side = chance.randrange(2)
        yamux = sides[side]
        for name, stream in ends[side].items():
            if data := to_send[side][name]:
                taken = yamux.write(stream, memoryview(data)[: chance.randrange(1, 90_000)])
                to_send[side][name] = data[taken:]
                if not to_send[side][name]:
                    yamux.finish(stream, 0.0)
            if chance.random() < 0.7:
                got[side][name] += yamux.take(stream, chance.randrange(1, 300_000))
        if chance.random() < 0.8:
            wires[side] += b"".join(yamux.drain())
        part = bytes(wires[1 - side][: chance.randrange(1, 400_000)])
        del wires[1 - side][: len(part)]
        for stream in yamux.feed(memoryview(part), 0.0)[0]:
            ends[side][stream.id] = stream
        if all(got[end] == sent[1 - end] for end in (0, 1)):
            break
    assert got[0] == sent[1] and got[1] == sent[0]


def test_pieces_written_together_leave_in_one_frame() -> None:
    yamux = machine(is_initiator=True)
    stream = yamux.open()
    for piece in (b"head", b"body", b"head"):
        yamux.write(stream, memoryview(piece))
    assert drained(yamux) == [(WINDOW_UPDATE, SYN, 1, 0), (DATA, 0, 1, 12)]
    yamux.write(stream, memoryview(b"later"))
    assert drained(yamux) == [(DATA, 0, 1, 5)]


def test_a_writer_waits_for_the_window_and_for_the_socket() -> None:
    yamux = machine(is_initiator=True)
    stream = yamux.open()
    data = memoryview(bytes(WINDOW_BYTES_MIN * 2))
    assert yamux.write(stream, data) == WINDOW_BYTES_MIN
    assert yamux.write(stream, data) == 0  # and no error, however long it takes
    _, changed = yamux.feed(frame(WINDOW_UPDATE, ACK, 1, 1 << 30), 0.0)
    assert changed == {stream}
    written = 0
    while taken := yamux.write(stream, data):
        written += taken
    assert yamux.outgoing_bytes >= OUTGOING_BYTES_MAX > written - len(data)
    yamux.drain()
    assert yamux.write(stream, data) > 0


def test_many_short_writes_wait_for_the_socket_too() -> None:
    """A header of each counts."""
    yamux = machine(is_initiator=True)
    streams = [yamux.open() for _ in range(8)]
    taken = 1
    while taken:
        for stream in streams:
            taken = yamux.write(stream, memoryview(b"x"))
    assert sum(map(len, yamux.drain())) <= OUTGOING_BYTES_MAX + CONTROL_BYTES_MAX


def test_a_byte_beyond_the_window_ends_the_connection() -> None:
    yamux = machine()
    stream = opened(yamux)
    yamux.feed(frame(DATA, 0, 1, WINDOW_BYTES_MIN, bytes(WINDOW_BYTES_MIN)), 0.0)
    assert stream.queued == WINDOW_BYTES_MIN
    with pytest.raises(YamuxError, match="beyond the window"):
        yamux.feed(frame(DATA, 0, 1, 1, b"x"), 0.0)


def test_a_frame_is_refused_before_its_data_comes() -> None:
    yamux = machine()
    opened(yamux)
    with pytest.raises(YamuxError, match="beyond the window"):
        yamux.feed(frame(DATA, 0, 1, WINDOW_BYTES_MIN + 1), 0.0)
    with pytest.raises(YamuxError, match="beyond the window"):
        machine().feed(frame(DATA, 0, 77, WINDOW_BYTES_MAX + 1), 0.0)


@pytest.mark.parametrize(
    "wire",
    [
        HEADER.pack(1, DATA, 0, 1, 0),
        HEADER.pack(0, 9, 0, 1, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 2, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 0, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0) * 2,
        HEADER.pack(0, GO_AWAY, 0, 0, 1),
    ],
)
def test_what_no_honest_peer_sends_ends_the_connection(wire: bytes) -> None:
    with pytest.raises(YamuxError):
        machine().feed(memoryview(wire), 0.0)


def test_streams_beyond_the_limit_are_reset_one_by_one() -> None:
    yamux = machine()
    for number in range(STREAMS_INBOUND_MAX):
        opened(yamux, 2 * number + 1)
    arrived, _ = yamux.feed(frame(WINDOW_UPDATE, SYN, 9999, 0), 0.0)
    assert arrived == []
    assert drained(yamux) == [(WINDOW_UPDATE, RST, 9999, 0)]
    yamux.feed(frame(WINDOW_UPDATE, RST, 1, 0), 0.0)
    assert opened(yamux, 10_001).id == 10_001  # one ended: there is room again


def test_a_window_grows_only_for_a_reader_that_keeps_up() -> None:
    yamux = machine()
    quick, slow = opened(yamux, 1), opened(yamux, 3)
    for _ in range(100):
        size = quick.credit // 2
        yamux.feed(frame(DATA, 0, 1, size, bytes(size)), 0.0)
        assert len(read_all(yamux, quick)) == size
        size = min(slow.credit, 150_000)
        yamux.feed(frame(DATA, 0, 3, size, bytes(size)), 0.0)
        yamux.take(slow, 50_000)
        yamux.drain()
    assert quick.window == WINDOW_BYTES_MAX
    assert slow.window == WINDOW_BYTES_MIN


def test_all_windows_together_are_bounded() -> None:
    yamux = machine()
    streams = [opened(yamux, 2 * number + 1) for number in range(STREAMS_INBOUND_MAX)]
    for _ in range(12):
        for stream in streams:
            size = stream.credit
            yamux.feed(frame(DATA, 0, stream.id, size, bytes(size)), 0.0)
            read_all(yamux, stream)
            yamux.drain()
    allowed = sum(stream.credit for stream in streams)
    assert allowed <= STREAMS_INBOUND_MAX * WINDOW_BYTES_MIN + GROWTH_BYTES_MAX
    assert max(stream.window for stream in streams) > WINDOW_BYTES_MIN
    for stream in streams:
        yamux.reset(stream)
    yamux.drain()
    fresh = opened(yamux, 9001)
    for _ in range(40):
        size = fresh.credit // 2
        yamux.feed(frame(DATA, 0, 9001, size, bytes(size)), 0.0)
        read_all(yamux, fresh)
    assert fresh.window == WINDOW_BYTES_MAX  # what ended streams had is free again


def test_tiny_frames_cost_no_more_than_their_bytes() -> None:
    yamux = machine()
    stream = opened(yamux)
    wire = b"".join(frame(DATA, 0, 1, 1, b"x") for _ in range(50_000))
    yamux.feed(memoryview(wire), 0.0)
    assert stream.queued == 50_000
    assert len(stream.queue) <= 50_000 // 4096 + 1
    assert read_all(yamux, stream) == b"x" * 50_000


def test_a_ping_is_answered() -> None:
    yamux = machine()
    yamux.feed(frame(PING, SYN, 0, 4711), 0.0)
    assert drained(yamux) == [(PING, ACK, 0, 4711)]


def test_who_asks_for_answers_and_does_not_read_them_is_cut_off() -> None:
    yamux = machine()
    pings = memoryview(HEADER.pack(0, PING, SYN, 0, 1) * (CONTROL_BYTES_MAX // HEADER.size + 1))
    with pytest.raises(YamuxError, match="does not read"):
        yamux.feed(pings, 0.0)


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    yamux = machine(is_initiator=True)
    yamux.tick(PING_SECONDS - 1)
    assert drained(yamux) == []
    yamux.tick(PING_SECONDS)
    yamux.tick(PING_SECONDS + 1)
    assert drained(yamux) == [(PING, SYN, 0, 1)]
    yamux.feed(frame(PING, ACK, 0, 1), 35.0)
    yamux.tick(SILENCE_SECONDS_MAX + 1)
    with pytest.raises(YamuxError, match="silent"):
        yamux.tick(35.0 + SILENCE_SECONDS_MAX + 1)


def test_each_end_closes_for_itself() -> None:
    yamux = machine()
    stream = opened(yamux)
    yamux.finish(stream, 0.0)
    with pytest.raises(YamuxError, match="closed for writing"):
        yamux.write(stream, memoryview(b"x"))
    yamux.feed(frame(DATA, FIN, 1, 3, b"end"), 0.0)
    assert (stream.ended, read_all(yamux, stream)) == (True, b"end")
    assert yamux.streams == {}
    assert drained(yamux) == [(WINDOW_UPDATE, FIN, 1, 0)]


def test_a_reset_drops_what_was_not_read() -> None:
    yamux = machine()
    stream = opened(yamux)
    yamux.feed(frame(DATA, 0, 1, 5, b"stale"), 0.0)
    yamux.feed(frame(WINDOW_UPDATE, RST, 1, 0), 0.0)
    assert (stream.broken, read_all(yamux, stream), yamux.streams) == (True, b"", {})
    with pytest.raises(YamuxError):
        yamux.write(stream, memoryview(b"x"))
    yamux.feed(frame(DATA, 0, 1, 4, b"late"), 0.0)
    assert drained(yamux) == []


def test_a_stream_that_only_we_closed_is_not_kept_for_ever() -> None:
    yamux = machine()
    stream = opened(yamux)
    yamux.finish(stream, 10.0)
    yamux.drain()
    yamux.feed(frame(DATA, 0, 1, 1, b"x"), 60.0)
    assert yamux.tick(10.0 + LINGER_SECONDS_MAX - 1) == []
    assert yamux.tick(10.0 + LINGER_SECONDS_MAX + 1) == [stream]
    assert (WINDOW_UPDATE, RST, 1, 0) in drained(yamux)


def test_no_stream_is_opened_to_a_peer_that_said_goodbye() -> None:
    yamux = machine(is_initiator=True)
    yamux.open()
    yamux.feed(frame(GO_AWAY, 0, 0, 0), 0.0)
    with pytest.raises(YamuxError, match="no more streams"):
        yamux.open()
