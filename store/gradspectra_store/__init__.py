"""The one database of the service: schema, ingest, queries, claims and watermarks, on SQLite and PostgreSQL alike."""

from gradspectra_store.database import Store
from gradspectra_store.errors import StoreError
from gradspectra_store.migrating import migrate

__all__ = ["Store", "StoreError", "migrate"]
