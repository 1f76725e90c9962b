"""The FastAPI service that puts the rooms together."""
