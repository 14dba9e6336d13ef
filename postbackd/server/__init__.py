"""gunicorn with group commit."""
