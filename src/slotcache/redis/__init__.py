"""A cache and locks on a Redis or Valkey server: for all processes, on all machines."""

from __future__ import annotations

from slotcache.redis.cache import RedisCache
from slotcache.redis.locks import RedisLocks

__all__ = ["RedisCache", "RedisLocks"]
