"""A cache and locks on a Redis or Valkey server: for all processes, on all machines."""

from __future__ import annotations

from slotcache.redis.cache import AsyncRedisCache, RedisCache
from slotcache.redis.locks import AsyncRedisLocks, RedisLocks

__all__ = ["AsyncRedisCache", "AsyncRedisLocks", "RedisCache", "RedisLocks"]
