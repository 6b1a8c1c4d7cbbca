"""Sell places in slots: a free list that is never stale by a race, and holds that never oversell."""
