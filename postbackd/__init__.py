"""What surrounds the four modules that have names of their own: see README's code map."""
