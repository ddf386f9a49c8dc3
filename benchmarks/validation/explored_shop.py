"""A shop whose engine shows random items of a small pool most of the time, so that its log supports
off-policy estimates. `which_proxy.py` takes it as one of its marketplaces.
"""

from karmafunnel.simulator.world.marketplace import Engine, Marketplace

marketplace = Marketplace(engine=Engine(pool=40, exploration=0.7))
