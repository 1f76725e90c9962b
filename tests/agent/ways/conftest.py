"""What the tests of the ways to train share."""

from agent.ways.way import the_way

__all__ = ["the_way"]
