"""Shared code of the training programs: model, data, optimizer, loop, checkpoints."""

from typing import Any

from fsspec.config import conf

# fsspec caches listings of buckets. They are stale once another process has written:
# Orbax would delete a checkpoint as broken if it was incomplete in an old listing.
for _protocol in ("gs", "gcs"):
    conf[_protocol] = {"use_listings_cache": False}

Config = Any
"""An `ml_collections.ConfigDict`, whose fields no type checker can know."""
