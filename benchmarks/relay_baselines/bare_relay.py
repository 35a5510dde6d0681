"""A bare asyncio relay: OpenAI events in, our frames out. No framework, no identity, no storage.

The least a Python chat backend can do per token, and the hardest baseline we could write: uvloop, plain
protocols, httptools on both sides, orjson. (The same relay on asyncio streams and json costs half as much
again.)

    python bare_relay.py PORT UPSTREAM_PORT
"""

import asyncio
import sys

import httptools
import orjson
import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
MESSAGE_ID = 812


def frame(event: bytes, offset: int, data: dict) -> bytes:
    """Return one chunk of the response that holds one server-sent event."""
    raw = b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (MESSAGE_ID, offset, event, orjson.dumps(data))
    return b"%x\r\n%b\r\n" % (len(raw), raw)


class Upstream(asyncio.Protocol):
    """One request to the model; its tokens are written to the client as they come."""

    def __init__(self, client: asyncio.Transport, content: str) -> None:
        self.client = client
        self.content = content
        self.offset = 0
        self.pending = b""
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        messages = [{"role": "user", "content": self.content}]
        body = orjson.dumps({"model": "mock", "stream": True, "messages": messages})
        transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Turn what has arrived into frames."""
        *events, self.pending = (self.pending + body).split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data: ")
            if payload == b"[DONE]":
                done = {"messageId": MESSAGE_ID, "status": "complete"}
                self.client.write(frame(b"done", self.offset, done) + b"0\r\n\r\n")
                continue
            choices = orjson.loads(payload)["choices"]
            token = choices[0]["delta"].get("content") if choices else None
            if token:
                self.offset += len(token)
                self.client.write(frame(b"message", self.offset, {"token": token}))

    def on_message_complete(self) -> None:
        self.transport.close()
        self.client.close()


class Client(asyncio.Protocol):
    """One request for a reply."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.upstream: asyncio.Task | None = None
        self.body = b""
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        """Answer with the headers and ask the upstream."""
        self.transport.write(HEAD)
        content = orjson.loads(self.body)["content"]
        connect = asyncio.get_running_loop().create_connection(
            lambda: Upstream(self.transport, content), "127.0.0.1", self.upstream_port
        )
        self.upstream = asyncio.ensure_future(connect)


async def main(port: int, upstream_port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(upstream_port), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
