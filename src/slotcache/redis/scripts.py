"""What is decided inside the server: one script for each operation, timed by the server's clock.

Each list is a hash, and one more hash stands for all lists:

    =====================  ===================================================================
    `{prefix}:list:KEY`    `epoch`, `clears` and `all` are the record: the epoch of the other
                           hash under which it was made tells that both are still the ones
                           that they were. Of the list that is kept, `stamp` is the name of its
                           bytes, `under` how many clears there had been at the look before its
                           load, `since` and `until` are its life, in microseconds of the
                           server's clock, and `list` is what `slotcache.codec` made of it
    `{prefix}:all`         `epoch`, and `clears`: how often every list was cleared at once
    `{prefix}:lock:NAME`   the token of who holds it, a string
    =====================  ===================================================================

How many clears a list has seen is the sum of both counters; a new record begins as far below zero
as the other one is above. So clearing every list is one command, whatever else is on the server,
and a look is one round trip. The braces put all lists of a cache on one node of a cluster.

Rules for editors. A clear must get through when the memory is full: the first thing that it
writes is a deletion, after which the server lets it finish, and it has no `#!lua` line, by which
it would be refused at once. The others have one: without `no-writes` in it a replica that lags
refuses them. Each returns, before its result, the nonce that it was called with: after an
interrupt a connection may still bring the answer to an earlier call. Nothing is random here (a
server's `math.random` repeats after a restart), and no 64-bit number is counted with: Lua's
numbers are floats.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = [
    "ACQUIRE",
    "CLEAR",
    "CLEAR_ALL",
    "FILL",
    "LONGEST",
    "LONGEST_LIST",
    "LOOK",
    "RELEASE",
    "Call",
    "Script",
]

LONGEST = 1e9
"""Seconds that anything may last: thirty years, which a float still tells in microseconds."""

LONGEST_LIST = 256 * 1024 * 1024
"""Bytes of a list; what is longer is none of ours, and is not sent."""


class Script:
    """A script, and the name by which a server that has seen it runs it again."""

    def __init__(self, source: str) -> None:
        self.source = source.strip().encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Call:
    """A script, and what it is about."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]


_LIVE = """
local function live(key, milliseconds)
    if redis.call('PTTL', key) < tonumber(milliseconds) then
        redis.call('PEXPIRE', key, milliseconds)
    end
end
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

LOOK = Script(
    f"""#!lua flags=allow-oom
-- KEYS: the list, all. ARGV: a nonce; a new epoch, the stamp of the bytes that are known; a
-- record's life.
{_LIVE}{_NOW}
local all = redis.call('HMGET', KEYS[2], 'epoch', 'clears')
local total = tonumber(all[2])
if not all[1] or not total then
    all, total = {{ARGV[2]}}, 0
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[2], 'epoch', ARGV[2], 'clears', total)
    live(KEYS[2], ARGV[4])
end
local kept = redis.call(
    'HMGET', KEYS[1], 'epoch', 'clears', 'all', 'stamp', 'under', 'since', 'until')
local clears = tonumber(kept[2])
local is_whole = kept[1] and clears and kept[3] == all[1]
if not is_whole or (tonumber(kept[5]) or 0) > clears + total then
    kept, clears = {{ARGV[2]}}, 0 - total
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'clears', clears, 'all', all[1])
    live(KEYS[1], ARGV[4])
    live(KEYS[2], ARGV[4])
end
local list = false
if kept[4] and kept[4] ~= ARGV[3] and redis.call('HSTRLEN', KEYS[1], 'list') <= {LONGEST_LIST} then
    list = redis.call('HGET', KEYS[1], 'list')
end
return {{ARGV[1], {{
    kept[1], clears + total, now,
    kept[4] or false, kept[5] or false, kept[6] or false, kept[7] or false, list,
}}}}
"""
)
"""Returns the generation (epoch, clears), the time, and of what is kept stamp, clears, since,
until and, unless the caller has them, bytes."""

FILL = Script(
    f"""#!lua
-- KEYS: the list, all. ARGV: a nonce; epoch, clears and time of the look; ttl, valid_for or '',
-- stale_ttl; stamp, bytes; a record's life.
{_LIVE}{_NOW}
local under, since = tonumber(ARGV[3]), tonumber(ARGV[4])
local all = redis.call('HMGET', KEYS[2], 'epoch', 'clears')
local kept = redis.call('HMGET', KEYS[1], 'epoch', 'clears', 'all', 'under', 'since')
if not kept[1] or kept[1] ~= ARGV[2] or kept[3] ~= all[1] then
    return {{ARGV[1], false}}
end
local clears = kept[2] + all[2]
local kept_under, kept_since = tonumber(kept[4]), tonumber(kept[5])
if under > clears then
    return {{ARGV[1], false}}
end
if kept_under and (kept_under > under or (kept_under == under and kept_since > since)) then
    -- Unless that is from the future: the clock was put back.
    if kept_since <= now then
        return {{ARGV[1], false}}
    end
end
local ends = since + ARGV[5]
if ARGV[6] ~= '' then
    ends = math.min(ends, now + ARGV[6])
end
redis.call('HSET', KEYS[1], 'stamp', ARGV[8], 'under', ARGV[3], 'since', ARGV[4],
    'until', string.format('%.0f', ends), 'list', ARGV[9])
local life = math.max(ARGV[10], math.ceil((ends - now + ARGV[7]) / 1000))
live(KEYS[1], life)
live(KEYS[2], life)
local is_fresh = under == clears and since <= now and now < ends
return {{ARGV[1], {{now, ends, is_fresh and 1 or 0}}}}
"""
)
"""Returns the time, the end of its life and whether it is fresh; nothing if it was dropped."""

CLEAR = Script(
    f"""
-- KEYS: the list, all. ARGV: a nonce; a record's life.
{_LIVE}
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('TYPE', KEYS[2]).ok ~= 'hash' then
    return {{ARGV[1], 0}}
end
local clears = tonumber(redis.call('HGET', KEYS[1], 'clears'))
local total = tonumber(redis.call('HGET', KEYS[2], 'clears'))
if not clears or not total then
    return {{ARGV[1], 0}}
end
local under = tonumber(redis.call('HGET', KEYS[1], 'under'))
if under and under < clears + total then
    redis.call('HDEL', KEYS[1], '')
else
    redis.call('HDEL', KEYS[1], 'stamp', 'under', 'since', 'until', 'list')
end
redis.call('HINCRBY', KEYS[1], 'clears', 1)
live(KEYS[1], ARGV[2])
live(KEYS[2], ARGV[2])
return {{ARGV[1], 1}}
"""
)
"""Returns 1 if there was a record."""

CLEAR_ALL = Script(
    f"""
-- KEYS: all. ARGV: a nonce; a record's life.
{_LIVE}
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
    return {{ARGV[1], 0}}
end
redis.call('HDEL', KEYS[1], '')
redis.call('HINCRBY', KEYS[1], 'clears', 1)
live(KEYS[1], ARGV[2])
return {{ARGV[1], 1}}
"""
)
"""Returns 1 if there was a record."""

ACQUIRE = Script(
    """#!lua flags=allow-oom
-- KEYS: the lock. ARGV: a nonce; the token, its life.
if redis.call('PTTL', KEYS[1]) == -1 then
    return redis.error_reply('WRONGTYPE It is no lock: what stands there has no end')
end
return {ARGV[1], redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 0}
"""
)
"""Returns 1 if it was granted."""

RELEASE = Script(
    """#!lua flags=allow-oom
-- KEYS: the lock. ARGV: a nonce; the token.
if redis.call('GET', KEYS[1]) == ARGV[2] then
    return {ARGV[1], redis.call('DEL', KEYS[1])}
end
return {ARGV[1], 0}
"""
)
"""Returns 1 if it was held under this token."""
