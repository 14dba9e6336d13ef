"""The SQLite file: schema, connection, backup, integrity, purge."""
