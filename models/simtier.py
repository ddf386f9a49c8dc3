"""SimTier: how many of the user's items are how near to a candidate, for networks and trees."""

BINS = 22  # cosines in steps of 0.1, from -1.1 to 1.1
