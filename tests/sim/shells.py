"""Tier B: the shells as they are (Swarm, Office, Following, Deliveries, sessions), over streams in
memory, with a clock that jumps and a scheduler that repeats.

An office of 8 to 16 machines, each connected to each. Two to four of them have an upstream, which
gives 64 KiB every 50 ms. Everybody wants the same NAR at about the same time; meanwhile members are
cut off and come back, readers are cancelled at their n-th step, and who fetches for all is lost in
the middle. In the end everybody has read the right bytes, and nothing is left behind.

With one of LINE_FAULTS all have an upstream, and it is told what came through the line needlessly:

    upstream    those of one or two machines that fetch for all break off in the middle
    liars       a quarter holds the NAR, says so, and sends blocks with a bit flipped
    delay       each piece of a stream is under way for up to 30 ms

With "sites" all have an upstream and a third of them is far away from the others.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import trio
import trio.testing

from chunker.digest import ManifestId
from chunker.ingest import Ingest
from chunker.record import PathRecord
from gateway.delivery import Body, Deliveries
from gateway.filling import Filling
from gateway.narinfo import fingerprint
from gateway.policy import any_of
from gateway.pump import BodyBroken
from gateway.signing import KeyRing, SecretKey
from gateway.trust import Admitted, admit
from peer.messages import Message, Sent
from peer.serving import Due
from tests.peer.office import Node, Office, hold, make_path, until

from .line import PIECE_SECONDS, Line, Upstream

NAR_BYTES = 2_400_000
START_SECONDS_MAX = 1.5
SECONDS_MAX = 300.0
"""Of virtual time: in this everybody completes."""
AGAIN_SECONDS = 0.5
STEPS_MAX = 400
SHELL_FAULTS = ("cut", "owner", "cancel", "poison")
LINE_FAULTS = ("upstream", "liars", "delay")
SITES = "sites"
FAR_SHARE = 3
DELAY_SECONDS_MAX = 0.03
LIARS_SHARE = 4
SUMMARY_SECONDS = 1.0
"""Until all know what the liars hold; then everybody wants it within a tenth of that."""
KEY = SecretKey("sim-1", bytes(32))


class Leak(AssertionError):
    """Something is left when all have read what they wanted."""


@dataclass
class Outcome:
    """`broken`: bodies that were cut, by machine; `copies` and `needless`: see `line.Line`."""

    seed: int
    machines: int
    seconds: float = 0.0
    copies: int = 0
    needless: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    deceived: list[str] = field(default_factory=list)
    """Those that read a lie to its end."""
    poisoner: str = ""
    away: set[str] = field(default_factory=set)
    """Those that were cut off for a while."""
    cancelled: set[str] = field(default_factory=set)
    trace: str = ""


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Trio's scheduler repeats for the same seed, and threads are calls in the loop: a clock that
    jumps would not wait for them. Private names of trio 0.22 to 0.30, held together here."""
    run = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate(), trio.to_thread.run_sync

    async def in_the_loop(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    trio.to_thread.run_sync = in_the_loop
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        run._r.setstate(before[1])
        trio.to_thread.run_sync = before[2]


class Steps(trio.abc.Instrument):
    """Writes down which task ran when, and cancels some at their n-th step."""

    def __init__(self) -> None:
        self.trace = hashlib.sha256()
        self._left: dict[trio.lowlevel.Task, tuple[int, trio.CancelScope]] = {}

    def cancel_at(self, steps: int, scope: trio.CancelScope) -> None:
        self._left[trio.lowlevel.current_task()] = steps, scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.trace.update(f"{trio.current_time():.6f} {task.name}\n".encode())
        if task in self._left:
            steps, scope = self._left.pop(task)
            if steps:
                self._left[task] = steps - 1, scope
            else:
                scope.cancel()


class Machine:
    """A node of the office with what reads through it."""

    def __init__(self, name: str, node: Node, upstream: Upstream | None) -> None:
        self.name = name
        self.node = node
        self.upstream = upstream
        self.lies = False
        upstreams: Any = () if upstream is None else (upstream,)
        self.deliveries = Deliveries(node.store, node.swarm, upstreams, KeyRing([]))

    async def read(self, admitted: Admitted) -> bool:
        """One GET, as Nix does it: whether it got the NAR. Raises BodyBroken."""
        body = await self.deliveries.open(admitted)
        if body is None:
            return False
        digest = hashlib.sha256()
        async with aclosing(_bytes_of(body, admitted.record.nar_size)) as pieces:
            async for data in pieces:
                digest.update(data)
        assert digest.digest() == admitted.record.nar_hash
        return True

    def poison(self, lie: bytes) -> None:
        """From now on it says of another NAR that it is the one that was asked for."""
        real = self.deliveries.fill
        if self.upstream is not None:
            self.upstream.nar_bytes = lie

        def fill(record: PathRecord) -> Filling | None:
            filling = real(record)
            if filling is not None:
                filling._finish = _pretend  # type: ignore
            return filling

        self.deliveries.fill = fill  # type: ignore[method-assign]

    def lie(self, record: PathRecord, nar: bytes) -> None:
        """From now on it holds the NAR, and flips a bit in each block that it sends."""
        self.lies = True
        self.node.catalogue.add(hold(self.node.store, record, nar))
        sending = self.node.swarm.sending
        honest = sending._read

        def corrupt(due: Due) -> Message:
            answer = honest(due)
            if not isinstance(answer, Sent):
                return answer
            payload = bytearray(answer.encoded.payload)
            payload[len(payload) // 2] ^= 1
            return replace(answer, encoded=replace(answer.encoded, payload=bytes(payload)))

        sending._read = corrupt  # type: ignore[method-assign]

    def check(self) -> None:
        """Nothing is under way, and the books say so. Raises Leak."""
        swarm = self.node.swarm
        exchange = swarm.exchange
        owed = [s for s in exchange._peers.values() if s.owed or s.spare or s.owed_bytes]
        left = {
            "fetches": swarm.fetches,
            "downloads": exchange._downloads,
            "flights": exchange._flights,
            "wanted": exchange._wanted,
            "owed": owed,
            "fillings": self.deliveries.running(),
            "queues": [s for s in swarm.inbound.met() if len(s.serving)],
        }
        leaks = [name for name, what in left.items() if what]
        if leaks:
            raise Leak(f"{self.name} has {', '.join(leaks)} left")


def _pretend(ingest: Ingest) -> ManifestId:
    return ingest.finish_unchecked()[0]


async def _bytes_of(body: Body, size: int) -> AsyncGenerator[bytes, None]:
    found = body(0, size)
    if isinstance(found, AsyncIterator):
        async with aclosing(cast(Any, found)):
            async for data in found:
                yield bytes(data)
        return
    buffer = bytearray(4 * 1024 * 1024)
    while pieces := found.read(buffer):
        for data in pieces:
            yield bytes(data)


class Scenario:
    def __init__(self, seed: int, faults: tuple[str, ...]) -> None:
        self._chance = random.Random(seed)
        self._faults = faults
        self._steps = Steps()
        self._machines: list[Machine] = []
        self.outcome = Outcome(seed, self._chance.randint(8, 16))
        record, self._nar = make_path("path", NAR_BYTES)
        record = replace(record, signatures=())
        text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
        record = replace(record, signatures=(KEY.sign(text),))
        self._admitted = admit(record, any_of(KeyRing([KEY.public])))
        self._line = Line(record)
        self._line_chance = random.Random(f"line {seed}")
        self._is_counted = not set(LINE_FAULTS).isdisjoint(faults)

    def run(self) -> Outcome:
        clock = trio.testing.MockClock(autojump_threshold=0)
        with deterministic(self.outcome.seed):
            trio.run(self._main, clock=clock, instruments=[self._steps])
        self.outcome.trace = self._steps.trace.hexdigest()
        return self.outcome

    async def _main(self) -> None:
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                place = Office(nursery)
                if "delay" in self._faults:
                    place.network.delay = self._delay
                await self._start(place, nursery)
                liar = self._poisoned()
                async with trio.open_nursery() as readers:
                    for machine in self._machines:
                        if machine is liar or machine.lies:
                            continue
                        readers.start_soon(self._read, machine)
                    for fault in self._drawn():
                        readers.start_soon(fault, place)
                self.outcome.seconds = trio.current_time()
                self.outcome.copies, self.outcome.needless = self._line.copies, self._line.needless
                await trio.sleep(2.0)  # for the last cancels and news to arrive
                for machine in self._machines:
                    machine.check()
                nursery.cancel_scope.cancel()

    async def _start(self, place: Office, nursery: trio.Nursery) -> None:
        record = self._admitted.record
        names = [f"machine-{n:02}" for n in range(self.outcome.machines)]
        with_upstream = self._chance.randint(2, 4)
        if SITES in self._faults:
            for name in names[-(len(names) // FAR_SHARE) :]:
                place.network.sites[place.peer(name)] = "far away"
        for n, name in enumerate(names):
            node = await place.start(name, "gateway", *names[:n])
            upstream = None
            if n < with_upstream or self._is_counted or SITES in self._faults:
                upstream = Upstream(name, record, self._nar, self._line)
            machine = Machine(name, node, upstream)
            await nursery.start(machine.deliveries.run)
            self._machines.append(machine)
        self._line.machines = self._machines
        everybody = len(names) - 1
        await until(lambda: all(len(m.node.swarm.sessions()) >= everybody for m in self._machines))
        if "liars" in self._faults:
            for machine in self._machines[-(len(names) // LIARS_SHARE) :]:
                machine.lie(record, self._nar)
            await trio.sleep(SUMMARY_SECONDS)

    def _delay(self) -> float:
        return self._line_chance.random() * DELAY_SECONDS_MAX

    async def _read(self, machine: Machine) -> None:
        at_once = "liars" in self._faults
        start_seconds_max = SUMMARY_SECONDS / 10 if at_once else START_SECONDS_MAX
        await trio.sleep(self._chance.random() * start_seconds_max)
        cancelled = "cancel" in self._faults and self._chance.random() < 0.4
        if cancelled:
            self.outcome.cancelled.add(machine.name)
            with trio.CancelScope() as scope, suppress(BodyBroken):
                self._steps.cancel_at(self._chance.randrange(STEPS_MAX), scope)
                await machine.read(self._admitted)
        while True:
            try:
                if await machine.read(self._admitted):
                    return
            except BodyBroken as error:
                deceived = "is not what was signed" in str(error)
                (self.outcome.deceived if deceived else self.outcome.broken).append(machine.name)
            await trio.sleep(AGAIN_SECONDS)

    def _poisoned(self) -> Machine | None:
        """Who would fetch for all, and lies; it reads nothing itself."""
        if "poison" not in self._faults or self._chance.random() < 0.5:
            return None
        ranked = self._machines[-1].node.swarm.office.rank(self._admitted.record)
        machines = {machine.node.peer: machine for machine in self._machines}
        liar = machines[ranked[0]] if ranked else self._machines[0]
        broken, other = self._nar[:-4096] + bytes(4096), make_path("other", NAR_BYTES)[1]
        liar.poison(self._chance.choice((broken, other)))
        self.outcome.poisoner = liar.name
        return liar

    # -- faults ----------------------------------------------------------------------------------

    def _drawn(self) -> list[Callable[[Office], Any]]:
        drawn = []
        if "cut" in self._faults:
            drawn += [self._cut] * self._chance.randint(0, self.outcome.machines // 3)
        if "owner" in self._faults and self._chance.random() < 0.7:
            drawn.append(self._lose_owner)
        if "upstream" in self._faults:
            drawn.append(self._break_off)
        return drawn

    async def _cut(self, place: Office) -> None:
        machine = self._chance.choice(self._machines)
        await trio.sleep(self._chance.random() * 3.0)
        await self._away(place, machine, 0.5 + self._chance.random() * 5.0)

    async def _lose_owner(self, place: Office) -> None:
        for _ in range(200):
            for machine in self._machines:
                running = machine.deliveries.running()
                if running and running[0].growing.bytes_known > NAR_BYTES // 3:
                    await self._away(place, machine, 10.0)
                    return
            await trio.sleep(PIECE_SECONDS)

    async def _break_off(self, place: Office) -> None:
        """Machines whose upstreams bring more than a drawn part of the NAR, one after the other."""
        left, part = self._line_chance.randint(1, 2), self._line_chance.random() * 0.8
        for _ in range(200):
            for machine in self._machines:
                upstream, running = machine.upstream, machine.deliveries.running()
                grown = max((filling.growing.bytes_known for filling in running), default=0)
                if upstream and not upstream.is_broken and grown > part * NAR_BYTES and left:
                    self.outcome.faults.append(f"{trio.current_time():.2f} broke {machine.name}")
                    upstream.is_broken = True
                    left -= 1
            await trio.sleep(PIECE_SECONDS)

    async def _away(self, place: Office, machine: Machine, seconds: float) -> None:
        self.outcome.faults.append(f"{trio.current_time():.2f} cut {machine.name}")
        self.outcome.away.add(machine.name)
        place.network.cut(machine.node.peer)
        await trio.sleep(seconds)
        place.network.restore(machine.node.peer)
