"""Programs for maintainers, run by hand and not installed."""
