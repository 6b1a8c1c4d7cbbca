"""The shop's promises, on the database that the settings name.

All are TransactionTestCases. In a TestCase, what a test saves is in a transaction that never ends:
slotcache does not see it, waits in vain for its lock, and no on_commit runs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from unittest import mock

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import F
from django.test import Client, TransactionTestCase
from django.utils import timezone

from shop import orders
from shop.models import Hold, Order, Window
from shop.places import close, places, windows
from slotcache import (
    Busy,
    HoldExpired,
    HoldManager,
    HoldPolicy,
    HoldState,
    SlotAvailability,
    Source,
)

PAID, SOLD, REFUND = Order.State.PAID, Order.State.SOLD, Order.State.REFUND
CONFIRMING = "slotcache.HoldManager.confirm"
NOTING_THAT = "django.db.models.query.QuerySet.update"


class ShopTest(TransactionTestCase):
    def setUp(self):
        self.window = Window.objects.create(depot="north", starts_at=timezone.now(), capacity=2)

    def tearDown(self):
        # Before Django empties the tables, on SQLite in any order: windows with holds would stay.
        Hold.objects.all().delete()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        close()  # PostgreSQL drops no database to which somebody is connected

    def take(self, quantity=1, ttl=600):
        return places().holds.create(self.window.pk, quantity, ttl=ttl, owner="ada")

    def take_and_let_expire(self):
        hold = self.take(ttl=0.001)
        while places().holds.get(hold.id).state is HoldState.HELD:
            time.sleep(0.001)
        return hold

    def free(self):
        listed = places().service.get_availability("north").get(self.window.pk)
        return listed.remaining

    def check(self, hold, *states, then, sold):
        """Compare what the tables say with what they should."""
        orders_of_hold = Order.objects.filter(hold_id=hold.id).order_by("pk")
        self.assertEqual([order.state for order in orders_of_hold], list(states))
        self.assertIs(places().holds.get(hold.id).state, then)
        self.window.refresh_from_db()
        self.assertEqual(self.window.capacity - self.window.remaining, sold)


class OrderTest(ShopTest):
    def test_a_committed_order_has_its_hold_confirmed(self):
        hold = self.take()

        orders.pay(hold, "payment 1")

        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_an_order_that_is_rolled_back_leaves_its_hold_to_its_end(self):
        hold = self.take()

        with suppress(ZeroDivisionError), transaction.atomic():
            orders.pay(hold, "payment 1")
            raise ZeroDivisionError

        self.check(hold, then=HoldState.HELD, sold=0)
        self.assertEqual(places().holds.get(hold.id).expires_at, hold.expires_at)

    def test_an_order_whose_confirmation_fails_is_settled_by_the_command(self):
        hold = self.take()
        with (
            mock.patch(CONFIRMING, side_effect=Busy(waited=3)),
            self.assertLogs("django.db.backends.base", "ERROR"),
        ):
            orders.pay(hold, "payment 1")
        self.check(hold, PAID, then=HoldState.HELD, sold=0)

        call_command("settle_orders")

        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_an_order_whose_process_is_killed_before_the_confirmation_is_settled_by_the_command(
        self,
    ):
        hold = self.take()
        killed(CONFIRMING, partial(orders.pay, hold, "payment 1"))
        self.check(hold, PAID, then=HoldState.HELD, sold=0)

        call_command("settle_orders")

        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_an_order_whose_process_is_killed_after_the_confirmation_is_sold_once(self):
        hold = self.take()
        killed(NOTING_THAT, partial(orders.pay, hold, "payment 1"))
        self.check(hold, PAID, then=HoldState.CONFIRMED, sold=1)

        call_command("settle_orders")
        call_command("settle_orders")

        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_a_late_payment_has_its_place_if_it_is_free(self):
        hold = self.take_and_let_expire()

        orders.pay(hold, "payment 1")

        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_a_late_payment_is_to_be_refunded_if_the_place_is_taken(self):
        hold = self.take_and_let_expire()
        self.take(quantity=2)

        orders.pay(hold, "payment 1")

        self.check(hold, REFUND, then=HoldState.EXPIRED, sold=0)

    def test_a_payment_that_is_told_twice_sells_one_place(self):
        hold = self.take()

        first, second = (orders.pay(hold, "payment 1") for _ in range(2))

        self.assertEqual(first, second)
        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_a_payment_that_is_told_twice_at_once_sells_one_place(self):
        hold = self.take()

        at_once(partial(orders.pay, hold, "payment 1"), partial(orders.pay, hold, "payment 1"))

        self.check(hold, SOLD, then=HoldState.CONFIRMED, sold=1)

    def test_a_second_payment_for_one_hold_is_to_be_refunded(self):
        hold = self.take()

        orders.pay(hold, "payment 1")
        orders.pay(hold, "payment 2")

        self.check(hold, SOLD, REFUND, then=HoldState.CONFIRMED, sold=1)

    def test_a_payment_for_what_was_given_up_is_to_be_refunded(self):
        hold = self.take()
        places().holds.cancel(hold.id)

        orders.pay(hold, "payment 1")

        self.check(hold, REFUND, then=HoldState.CANCELLED, sold=0)

    def test_an_order_that_is_refunded_keeps_no_place_though_another_settled_it_meanwhile(
        self,
    ):
        hold = self.take_and_let_expire()
        confirm = HoldManager.confirm

        def refused_then_confirmed_by_another(*args, **options):
            confirm(*args, **options)
            raise HoldExpired(hold.id, expires_at=hold.expires_at)

        with mock.patch(CONFIRMING, refused_then_confirmed_by_another):
            orders.pay(hold, "payment 1")

        self.check(hold, REFUND, then=HoldState.CANCELLED, sold=0)


class ListTest(ShopTest):
    def setUp(self):
        super().setUp()
        self.assertEqual(self.free(), 2)  # it is cached now

    def test_a_window_that_is_saved_is_listed_after_the_commit(self):
        with transaction.atomic():
            Window.objects.create(depot="north", starts_at=timezone.now(), capacity=5)
            self.assertEqual(len(places().service.get_availability("north")), 1)

        self.assertEqual(len(places().service.get_availability("north")), 2)

    def test_a_window_that_is_closed_leaves_the_list_after_the_commit(self):
        self.window.open = False
        self.window.save()

        self.assertEqual(list(places().service.get_availability("north")), [])

    def test_a_window_that_moves_changes_both_lists(self):
        self.assertEqual(len(places().service.get_availability("south")), 0)

        self.window.depot = "south"
        self.window.save()

        self.assertEqual(len(places().service.get_availability("north")), 0)
        self.assertEqual(len(places().service.get_availability("south")), 1)

    def test_a_change_that_is_rolled_back_clears_no_list(self):
        with suppress(ZeroDivisionError), transaction.atomic():
            self.window.delete()
            raise ZeroDivisionError

        self.assertIs(places().service.read("north").source, Source.CACHED)

    def test_a_save_of_an_old_copy_does_not_bring_sold_places_back(self):
        orders.pay(self.take(), "payment 1")

        self.window.save()

        self.assertEqual(self.free(), 1)
        self.assertEqual(Window.objects.get().remaining, 1)

    def test_no_update_can_sell_more_than_there_is(self):
        with self.assertRaises(IntegrityError):
            Window.objects.update(remaining=F("remaining") + 1)


class AdminTest(ShopTest):
    def setUp(self):
        super().setUp()
        self.assertEqual(self.free(), 2)
        self.client.force_login(User.objects.create(is_superuser=True, is_staff=True))

    def edit(self, **fields):
        """Send the form of the window; return what the next page says."""
        form = {"depot": "north", "capacity": 2, "open": "on", **fields}
        form.update(starts_at_0="2026-12-01", starts_at_1="09:00")
        url = f"/admin/shop/window/{self.window.pk}/change/"
        return self.client.post(url, form, follow=True).content.decode()

    def test_a_new_capacity_is_listed(self):
        orders.pay(self.take(), "payment 1")

        self.edit(capacity=7)

        self.assertEqual(self.free(), 6)

    def test_a_capacity_below_what_is_promised_is_refused_in_words(self):
        self.take(quantity=2)

        page = self.edit(capacity=1)

        self.assertIn("set 2 or more", page)
        self.assertEqual(Window.objects.get().capacity, 2)

    def test_holds_are_shown(self):
        hold = self.take()

        self.assertContains(self.client.get("/admin/shop/hold/"), hold.id)


class PageTest(ShopTest):
    def post(self, client, path, **form):
        return client.post(path, form).status_code

    def take_page(self, client, attempt="1"):
        return self.post(client, f"/windows/{self.window.pk}/take", attempt=attempt)

    def test_of_two_who_want_the_last_place_one_has_it(self):
        self.take()

        answers = at_once(*[partial(self.take_page, Client()) for _ in range(2)])

        self.assertEqual(sorted(answers), [302, 409])
        self.assertEqual(self.free(), 0)

    def test_a_form_that_is_sent_twice_takes_one_place(self):
        self.assertEqual([self.take_page(self.client) for _ in range(2)], [302, 302])

        self.assertEqual(self.free(), 1)

    def test_who_pays_is_told_that_the_place_is_sold(self):
        self.take_page(self.client)
        (hold,) = places().holds.find()

        page = self.client.post(f"/holds/{hold.id}/pay", {"payment": "1"}, follow=True)

        self.assertContains(page, ": sold")

    def test_who_pays_too_late_is_told_of_the_refund(self):
        self.take_page(self.client)
        (hold,) = places().holds.find()

        with mock.patch(CONFIRMING, side_effect=HoldExpired(hold.id, expires_at=hold.expires_at)):
            page = self.client.post(f"/holds/{hold.id}/pay", {"payment": "1"}, follow=True)

        self.assertContains(page, "to be refunded")

    def test_who_gives_up_gives_the_place_back(self):
        self.take_page(self.client)
        (hold,) = places().holds.find()

        self.assertEqual(self.post(self.client, f"/holds/{hold.id}/give-up"), 302)

        self.assertEqual(self.free(), 2)

    def test_nobody_pays_for_or_gives_up_what_another_has_taken(self):
        hold = self.take()

        self.assertEqual(self.post(self.client, f"/holds/{hold.id}/pay", payment="1"), 404)
        self.assertEqual(self.post(self.client, f"/holds/{hold.id}/give-up"), 404)
        self.check(hold, then=HoldState.HELD, sold=0)

    def test_a_busy_table_is_a_503(self):
        with mock.patch("slotcache.HoldManager.create", side_effect=Busy(waited=3)):
            self.assertEqual(self.take_page(self.client), 503)

    def test_a_list_that_is_known_is_a_304(self):
        answer = self.client.get("/north/free.json")
        self.assertEqual(answer.json()[0], SlotAvailability(self.window.pk, 2, 2)._asdict())

        again = self.client.get("/north/free.json", headers={"If-None-Match": answer["ETag"]})

        self.assertEqual(again.status_code, 304)


class InsideAtomicTest(ShopTest):
    """What comes of calling slotcache inside a transaction of Django's."""

    def setUp(self):
        super().setUp()
        hurried = HoldPolicy(lock_wait=0.05)
        self.holds = HoldManager(places().slots, on_change=None, policy=hurried)
        self.hold = self.take()

    @unittest.skipIf(connection.vendor == "sqlite", "it waits for the file")
    def test_a_confirmation_outlives_the_rollback_of_what_is_around_it(self):
        with suppress(ZeroDivisionError), transaction.atomic():
            self.holds.confirm(self.hold.id)
            raise ZeroDivisionError

        self.check(self.hold, then=HoldState.CONFIRMED, sold=1)

    def test_a_hold_waits_in_vain_for_a_window_that_its_own_thread_has_written(self):
        with transaction.atomic(), self.assertRaises(Busy):
            Window.objects.update(open=True)
            self.holds.confirm(self.hold.id)

    @unittest.skipUnless(connection.vendor == "sqlite", "others lock rows")
    def test_on_sqlite_a_hold_waits_in_vain_for_whatever_its_own_thread_has_begun(self):
        with transaction.atomic(), self.assertRaises(Busy):
            self.holds.confirm(self.hold.id)

    @unittest.skipUnless(connection.vendor == "mysql", "others let a key be shared")
    def test_on_mariadb_a_hold_waits_in_vain_for_an_order_of_its_window(self):
        with transaction.atomic(), self.assertRaises(Busy):
            orders.pay(self.hold, "payment 1")
            self.holds.extend(self.hold.id, ttl=900)

    @unittest.skipUnless(connection.vendor == "postgresql", "others lock more")
    def test_on_postgresql_a_hold_does_not_wait_for_an_order_of_its_window(self):
        with transaction.atomic():
            orders.pay(self.hold, "payment 1")
            self.holds.extend(self.hold.id, ttl=900)

        self.check(self.hold, SOLD, then=HoldState.CONFIRMED, sold=1)


class MigrationTest(ShopTest):
    def test_the_models_are_as_the_migrations_make_them(self):
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)

    def test_slotcache_and_django_mean_the_same_columns(self):
        for column in windows.columns:
            self.assertTrue(Window._meta.get_field(column.name).column, column.name)

        with connection.cursor() as cursor:
            described = connection.introspection.get_table_description(cursor, "slot_holds")
        columns = {field.column for field in Hold._meta.concrete_fields}
        self.assertEqual({column.name for column in described}, columns)


def at_once(*works):
    """Do each in a thread of its own, with a connection of its own."""
    start = threading.Barrier(len(works), timeout=20)

    def run(work):
        try:
            start.wait()
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def killed(place, work):
    """Do it in a process that is killed when it comes to that place."""
    connections.close_all()  # Django's: what is open would be the child's, too
    child = os.fork()
    if child == 0:
        with mock.patch(place, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
            try:
                work()
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
