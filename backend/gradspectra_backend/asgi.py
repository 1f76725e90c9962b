"""The application for `uvicorn gradspectra_backend.asgi:app`, with its settings from the environment."""

from gradspectra_backend.app import create_app

app = create_app()
