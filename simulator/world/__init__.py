"""The World: a simulated marketplace whose truth is known."""

from .marketplace import Marketplace
from .open_shop import open_shop
from .simulate import simulate
from .world import World, generate

__all__ = ["Marketplace", "World", "generate", "open_shop", "simulate"]
