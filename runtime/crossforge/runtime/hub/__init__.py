"""Bundles on the model hub: how they are named, and how what runs comes into the hub's cache.

huggingface_hub is imported in functions, when an address is really asked for.
"""

from crossforge.runtime.hub.address import HubAddress, is_hub_id
from crossforge.runtime.hub.snapshot import HubOptions, Snapshot, find_snapshot, is_snapshot

__all__ = ["HubAddress", "HubOptions", "Snapshot", "find_snapshot", "is_hub_id", "is_snapshot"]
