"""What is derived from records, as plain functions, and how the work is handed out."""
