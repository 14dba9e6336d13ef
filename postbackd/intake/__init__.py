"""From a request to a committed row."""
