"""The World: a simulated marketplace whose truth is known."""

from .marketplace import World, generate

__all__ = ["World", "generate"]
