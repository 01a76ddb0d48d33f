// A js-libp2p peer for test_js.py. `node peer.mjs listen` prints its address and echoes streams;
// `node peer.mjs dial ADDRESS BYTES` pings, identifies, has BYTES echoed, and prints what it saw.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = () => {
    const all = {}
    all.promise = new Promise((resolve, reject) => Object.assign(all, { resolve, reject }))
    return all
  }
}
const { createHash, randomBytes } = await import('node:crypto')
const { createLibp2p } = await import('libp2p')
const { multiaddr } = await import('@multiformats/multiaddr')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')

const PROTOCOL = '/narswarm/blocks/1'
const PIECE = 64 * 1024
const [mode, address, count] = process.argv.slice(2)

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
})

async function send (stream, data) {
  for (let at = 0; at < data.length; at += PIECE) {
    if (!stream.send(data.subarray(at, at + PIECE))) await stream.onDrain()
  }
}

if (mode === 'listen') {
  await node.handle(PROTOCOL, async (stream) => {
    for await (const piece of stream) await send(stream, piece.subarray())
    await stream.close()
  })
  process.stdin.on('end', () => node.stop()).resume() // the test went away
  console.log(node.getMultiaddrs()[0].toString())
} else {
  const there = multiaddr(address)
  const connection = await node.dial(there)
  const pings = []
  for (let n = 0; n < 2; n++) pings.push(await node.services.ping.ping(there))
  const { agentVersion, protocols } = await node.services.identify.identify(connection)
  const sent = randomBytes(Number(count))
  const stream = await connection.newStream(PROTOCOL)
  const got = createHash('sha256')
  let received = 0
  await Promise.all([
    send(stream, sent),
    (async () => {
      for await (const piece of stream) {
        got.update(piece.subarray())
        received += piece.length
        if (received >= sent.length) break
      }
    })()
  ])
  await stream.close()
  const same = got.digest('hex') === createHash('sha256').update(sent).digest('hex')
  console.log(JSON.stringify({ pings: pings.length, agentVersion, protocols, received, same }))
  await node.stop()
}
