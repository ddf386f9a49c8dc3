"""karmafunnel: replay a personalized-search funnel offline and see, stage by stage, what it keeps
and what it loses.
"""

import os

# torch, faiss and LightGBM bring a thread pool each; pools that spin while they wait starve each
# other (30 times slower on 2 cores).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
