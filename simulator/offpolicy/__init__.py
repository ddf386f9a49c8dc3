"""Off-policy estimates: what another funnel would have earned, from what a logging policy
showed.
"""

# what a shown item may earn, and the label that it is an answer of
REWARDS = {"clicks": "click", "purchases": "purchase", "money": "purchase"}
