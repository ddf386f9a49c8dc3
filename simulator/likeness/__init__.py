"""How true a simulated log is to a real one: the report card."""

from .card import Card, likeness

__all__ = ["Card", "likeness"]
