"""What the shop answers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from shop import orders
from shop.models import Order, Window
from shop.places import places
from slotcache import (
    BackendError,
    Busy,
    Hold,
    HoldNotFound,
    HoldState,
    SlotcacheError,
    SlotNotFound,
)

STATUS = {SlotNotFound: 404, HoldNotFound: 404, Busy: 503, BackendError: 503}
"""Of all others: 409, the caller asks for what is not to be had."""


def free(request: HttpRequest, depot: str) -> HttpResponse:
    """The cached list as it is, for a script. ConditionalGetMiddleware turns it into a 304."""
    listed = places().service.get_availability(depot)
    headers = {"ETag": listed.etag, "Cache-Control": "no-cache"}
    return HttpResponse(listed.to_json(), content_type="application/json", headers=headers)


def index(request: HttpRequest, depot: str) -> HttpResponse:
    """The same for people, with what they have taken and bought."""
    listed = places().service.get_availability(depot)
    windows = list(Window.objects.filter(depot=depot, open=True).order_by("starts_at"))
    for window in windows:
        window.free = listed.get(window.pk)
    mine = customer(request)
    held = places().holds.find(owner=mine, state=HoldState.HELD)
    bought = Order.objects.filter(customer=mine).select_related("window")
    # Each form that is shown is one attempt to take a place, and one payment.
    shown = {"windows": windows, "held": held, "bought": bought, "attempt": uuid.uuid4()}
    return render(request, "shop/index.html", shown)


@require_POST
def take(request: HttpRequest, window_id: int) -> HttpResponse:
    hold = places().holds.create(
        window_id,
        ttl=600,
        idempotency_key=request.POST["attempt"],
        owner=customer(request),
    )
    return redirect("index", depot=hold.scope)


@require_POST
def pay(request: HttpRequest, hold_id: UUID) -> HttpResponse:
    """Here a button pays. In earnest, it is the payment provider who calls."""
    hold = own_hold(request, hold_id)
    order = orders.pay(hold, payment=request.POST["payment"])
    messages.info(request, f"{order.window}: {order.get_state_display()}")
    return redirect("index", depot=hold.scope)


@require_POST
def give_up(request: HttpRequest, hold_id: UUID) -> HttpResponse:
    hold = own_hold(request, hold_id)
    if hold.state is HoldState.HELD:
        places().holds.cancel(hold_id)
    return redirect("index", depot=hold.scope)


def own_hold(request: HttpRequest, hold_id: UUID) -> Hold:
    """An owner is a name, not a right: slotcache confirms for whoever has the id."""
    hold = places().holds.get(hold_id)
    if hold.owner != customer(request):
        raise Http404
    return hold


def customer(request: HttpRequest) -> str:
    """Who this is. Not the session's key, which is a secret and changes at login."""
    name: str = request.session.setdefault("customer", uuid.uuid4().hex)
    return name


class Refusals:
    """Middleware that answers for what slotcache raises in a view."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, SlotcacheError):
            return None
        status = STATUS.get(type(error), 409)
        return HttpResponse(str(error), content_type="text/plain", status=status)
