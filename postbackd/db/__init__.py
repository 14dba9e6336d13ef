"""The database: rows, durable commits, backup, integrity."""
