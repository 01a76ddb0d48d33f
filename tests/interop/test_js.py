"""Our transport and js-libp2p: ping, identify and an echo stream, each side dialling once."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from libp2p.host.ping import PingService
from libp2p.peer.id import ID

from peer.host import Libp2pTransport
from peer.identity import parse_address
from peer.transport import PROTOCOL
from tests.contract.sessions import echo, muxer, transport

HERE = Path(__file__).parent / "js"
SECONDS_MAX = 60.0
ECHO_BYTES = 2_000_000


@pytest.fixture(scope="module", autouse=True)
def js() -> None:
    """js-libp2p from the lock file; where there is no Node this is skipped, in CI it fails."""
    if not shutil.which("npm"):
        if os.environ.get("CI"):
            pytest.fail("CI must have Node.js and npm")
        pytest.skip("no Node.js and npm on this machine")
    if not (HERE / "node_modules" / ".package-lock.json").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=HERE, check=True)


@pytest.fixture(autouse=True)
def sockets_left_by_libp2p() -> Iterator[None]:
    """py-libp2p 0.8.1 leaves sockets of ended dials to the collector; that must not fail others."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@asynccontextmanager
async def ours() -> AsyncIterator[tuple[Libp2pTransport, trio.Nursery]]:
    us = transport("fast", 1)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(us.run, {PROTOCOL: echo})
            yield us, nursery
            nursery.cancel_scope.cancel()


async def test_js_dials_us() -> None:
    async with ours() as (us, _):
        command = ["node", "peer.mjs", "dial", us.addresses()[0].text, str(ECHO_BYTES)]
        ran = await trio.run_process(command, cwd=HERE, capture_stdout=True)
        saw = json.loads(ran.stdout)
        assert (saw["pings"], saw["received"], saw["same"]) == (2, ECHO_BYTES, True)
        assert "/narswarm/blocks/1" in saw["protocols"]
        assert saw["agentVersion"].startswith("py-libp2p/")


async def test_we_dial_js() -> None:
    data = random.Random(3).randbytes(ECHO_BYTES)
    async with ours() as (us, nursery):
        start = partial(
            trio.run_process,
            ["node", "peer.mjs", "listen"],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            check=False,
        )
        process = await nursery.start(start)
        address = parse_address((await process.stdout.receive_some(1000)).decode().strip())
        stream = await us.open(address)
        assert muxer(us) == "FastConnection"
        got = bytearray()

        async def read() -> None:
            while len(got) < len(data):
                got.extend(await stream.receive_some(65536))

        async with trio.open_nursery() as reading:
            reading.start_soon(read)
            await stream.send_all(data)
        assert bytes(got) == data
        await stream.aclose()
        peer = ID.from_base58(address.peer)
        assert len(await PingService(us._host).ping(peer, 2)) == 2
        assert "/ipfs/ping/1.0.0" in us._host.get_peerstore().get_protocols(peer)
        await process.stdin.aclose()
        await process.wait()
