"""The application for `uvicorn gradspectra_backend.asgi:app`, with its settings from the environment."""

from gradspectra_backend.app import create_app
from gradspectra_backend.orphans import end_with_parent

app = create_app()
end_with_parent()
