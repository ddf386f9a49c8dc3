"""The World: a simulated marketplace whose truth is known."""

from .world import World, generate

__all__ = ["World", "generate"]
