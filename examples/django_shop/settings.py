"""A Django project as usual. What slotcache needs of it is said where it stands."""

import os
from pathlib import Path

import sqlalchemy as sa

DATA = Path(os.environ.get("SHOP_DATA", Path(__file__).parent))

# Both write to one file: nobody may read first and write later in one transaction, and a test's
# database is a file, too, for slotcache cannot reach the memory of Django's connection.
SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": DATA / "shop.sqlite3",
    "OPTIONS": {"timeout": 5, "transaction_mode": "IMMEDIATE"},
    "TEST": {"NAME": DATA / "test.sqlite3"},
}


ENGINES = {"postgresql": "postgresql", "mariadb": "mysql"}


def server(url: sa.URL) -> dict[str, object]:
    return {
        "ENGINE": "django.db.backends." + ENGINES[url.get_backend_name()],
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or "",
        "PORT": url.port or "",
    }


URL = os.environ.get("SHOP_DATABASE")  # postgresql://shop:secret@db.example.org/shop
DATABASES = {"default": server(sa.make_url(URL)) if URL else SQLITE}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LISTS = DATA / "lists"  # where the processes of this host share the cached lists

DEBUG = True
SECRET_KEY = "for this example only"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
TIME_ZONE = "UTC"
STATIC_URL = "static/"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "shop",
]
MIDDLEWARE = [
    "django.middleware.http.ConditionalGetMiddleware",  # answers 304 where the ETag is known
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "shop.views.Refusals",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
