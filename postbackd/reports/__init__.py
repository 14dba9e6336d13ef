"""Totals, listings, queries and anomalies: modules that only read the database."""
