"""Off-policy estimates: what another funnel would have earned, from what a logging policy
showed.
"""
