"""What the tests of the integrations share."""

from agent.ways.way import the_way

__all__ = ["the_way"]
