"""karmafunnel: replay a personalized-search funnel offline and see, stage by stage, what it keeps and what it loses."""

__version__ = "0.1.0"
