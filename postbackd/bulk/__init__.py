"""Files that people hand in: taken in, or compared."""
