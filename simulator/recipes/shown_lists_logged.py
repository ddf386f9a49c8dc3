"""Rank the list that was really shown, the logged rank coming in as "the rank of the production
stage before".
"""

from karmafunnel.log import Log
from karmafunnel.simulator.recipes.shown_lists import lists
from karmafunnel.stages.stage import Funnel


def funnel(log: Log) -> Funnel:
    return lists(log, logged_order=True)
