"""A floor that is hard to beat where people buy again: the user's own most frequent items, then
what is popular.
"""

from karmafunnel.stages.recall import Join, Popular, Repeat

funnel = Join([Repeat(k=200, depth=2000), Popular(k=200)], k=400, quotas=(200, 200))
