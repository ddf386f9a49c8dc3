"""The floor of every table: what was clicked or bought most before the request."""

from karmafunnel.stages.recall import Popular

funnel = Popular(k=200)
