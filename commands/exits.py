"""The exit statuses of commands."""

REFUSED = 1
WRONG_USAGE = 2
# What shells give for a program that Ctrl-C ended: 128 and the number of the signal.
INTERRUPTED = 130
