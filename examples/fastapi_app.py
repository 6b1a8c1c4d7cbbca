"""An HTTP API on the async half of slotcache: a list of free places, and holds on them.

    pip install fastapi uvicorn "slotcache[async]"
    uvicorn fastapi_app:app

The table is a file, `slots.db`; with DATABASE_URL (`postgresql+psycopg://...`) it is on a server.
Each process keeps the list in its memory. For several give the service
`cache=slotcache.redis.AsyncRedisCache(url)`, and a change is seen by all of them at once.

Who knows the id of a hold may confirm it and give it up: ids are random. A shop that knows its
customers gives `create` an `owner`, and compares.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from pydantic import BaseModel, PositiveInt
from sqlalchemy.ext.asyncio import create_async_engine

from slotcache import (
    AsyncHoldManager,
    AsyncSlotAvailabilityService,
    Busy,
    Hold,
    HoldExpired,
    HoldNotFound,
    IdempotencyConflict,
    IllegalTransition,
    SlotcacheError,
    SlotFull,
    SlotNotFound,
)
from slotcache.sql import AsyncSqlSlots

STATUS: dict[type[SlotcacheError], int] = {
    SlotNotFound: 404,
    HoldNotFound: 404,
    SlotFull: 409,
    IllegalTransition: 409,
    HoldExpired: 410,
    # As draft-ietf-httpapi-idempotency-key-header has it. By a 409 it says that the first request
    # is still under way, so that a client would send this one again, and again.
    IdempotencyConflict: 422,
    Busy: 503,
}
"""Errors that a client can do something about. All others are a 500, and in the log."""


@dataclass(frozen=True)
class Shop:
    """What requests share: made when the application starts."""

    service: AsyncSlotAvailabilityService
    holds: AsyncHoldManager


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Shop]]:
    async with AsyncExitStack() as stack:
        if url := os.environ.get("DATABASE_URL"):
            engine = create_async_engine(url)
            stack.push_async_callback(engine.dispose)
            slots = AsyncSqlSlots(engine)
        else:
            slots = AsyncSqlSlots.sqlite("slots.db")
        await stack.enter_async_context(slots)
        service = await stack.enter_async_context(AsyncSlotAvailabilityService(slots))
        holds = AsyncHoldManager(slots, on_change=service.clear_availability_cache)
        await slots.create_tables()
        with suppress(ValueError):  # they are there: it is not the first start
            await slots.add([(1, 10), (2, 10)], scope="monday")
        yield {"shop": Shop(service, holds)}


async def shop_of(request: Request) -> AsyncIterator[Shop]:
    shop: Shop = request.state.shop
    try:
        yield shop
    except ValueError as error:  # what was asked for can never be: a text with a NUL, for one
        raise HTTPException(422, str(error)) from error


async def refused(_request: Request, error: Any) -> Response:
    """Answer with the error: its text for people, its fields for programs (RFC 9457)."""
    kind, status = type(error), STATUS[type(error)]
    problem = {"type": f"/problems/{kind.__name__}", "title": kind.__name__, "status": status}
    return JSONResponse(
        jsonable_encoder({**vars(error), **problem, "detail": str(error)}),
        status,
        headers={"Retry-After": "1"} if error.retryable else None,
        media_type="application/problem+json",
    )


app = FastAPI(lifespan=lifespan, exception_handlers=dict.fromkeys(STATUS, refused))
CurrentShop = Annotated[Shop, Depends(shop_of)]


@app.get("/slots/availability")
async def availability(
    shop: CurrentShop,
    scope: str | None = None,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """Tell what is free, unless the client knows: a list that has not changed is not sent again."""
    free = await shop.service.get_availability(scope)
    headers = {"ETag": free.etag, "Cache-Control": "no-cache"}
    if free.etag in if_none_match:  # perhaps one of several, or weak: W/"..."
        return Response(status_code=304, headers=headers)
    return Response(free.to_json(), headers=headers, media_type="application/json")


class Wanted(BaseModel):
    quantity: PositiveInt = 1
    ttl: float | None = None


@app.post("/slots/{slot_id}/hold", status_code=201)
async def hold(
    shop: CurrentShop,
    slot_id: int,
    wanted: Wanted,
    idempotency_key: Annotated[str, Header()],
    response: Response,
) -> Hold:
    """Promise places. Who had no answer sends the same again, and has one hold."""
    made = await shop.holds.create(
        slot_id, wanted.quantity, ttl=wanted.ttl, idempotency_key=idempotency_key
    )
    if made.replayed:
        response.status_code = 200
    return made


@app.post("/holds/{hold_id}/confirm")
async def confirm(shop: CurrentShop, hold_id: UUID) -> Hold:
    """Sell what was promised."""
    return await shop.holds.confirm(hold_id)


@app.delete("/holds/{hold_id}")
async def cancel(shop: CurrentShop, hold_id: UUID) -> Hold:
    """Give it up, whether it was sold or not."""
    return await shop.holds.cancel(hold_id)
