"""Where it answers."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from shop import views

urlpatterns = [
    path("", RedirectView.as_view(url="/north/")),
    path("admin/", admin.site.urls),
    path("windows/<int:window_id>/take", views.take, name="take"),
    path("holds/<uuid:hold_id>/pay", views.pay, name="pay"),
    path("holds/<uuid:hold_id>/give-up", views.give_up, name="give_up"),
    path("<slug:depot>/", views.index, name="index"),
    path("<slug:depot>/free.json", views.free, name="free"),
]
