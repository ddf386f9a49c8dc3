"""Next item by item-kNN alone: cosine of co-occurrence within users, the newest of the history
weighing most.
"""

from karmafunnel.stages.recall import ItemKNN

funnel = ItemKNN(k=200)
