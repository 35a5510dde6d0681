"""The same app as one would write it with FastAPI and httpx: a shared client, no storage.

Run by uvicorn from a virtual environment of its own (the product does not depend on FastAPI):

    UPSTREAM=http://127.0.0.1:9100 uvicorn fastapi_relay:app
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

UPSTREAM = os.environ["UPSTREAM"]
MESSAGE_ID = 812


class Send(BaseModel):
    """One message to the model."""

    content: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold one shared client, without httpx's limit of 100 connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


def frame(event: str, offset: int, data: dict) -> str:
    """Return one server-sent event of our shape."""
    return f"id: {MESSAGE_ID}-{offset}\nevent: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def reply(content: str) -> AsyncIterator[str]:
    """Yield the frames of one reply."""
    body = {"model": "mock", "stream": True, "messages": [{"role": "user", "content": content}]}
    offset = 0
    async with app.state.client.stream("POST", f"{UPSTREAM}/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            payload = line[6:]
            if payload == "[DONE]":
                yield frame("done", offset, {"messageId": MESSAGE_ID, "status": "complete"})
                return
            choices = json.loads(payload)["choices"]
            token = choices[0]["delta"].get("content") if choices else None
            if token:
                offset += len(token)
                yield frame("message", offset, {"token": token})


@app.post("/api/xcx/chat/stream")
async def stream(send: Send) -> StreamingResponse:
    """Answer with the reply as server-sent events."""
    return StreamingResponse(reply(send.content), media_type="text/event-stream")
