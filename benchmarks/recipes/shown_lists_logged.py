"""Rank the list that was really shown, the logged rank coming in as "the rank of the production stage before"."""

from karmafunnel.benchmarks.recipes.shown_lists import lists
from karmafunnel.log import Log
from karmafunnel.stages.base import Funnel


def funnel(log: Log) -> Funnel:
    return lists(log, logged_order=True)
