"""gunicorn's settings, which it finds here by itself: `gunicorn postback:application` suffices.

`postback serve` uses the same ones, from wherever it is run. They stand, each with its reason, in
`server/gunicorn_conf.py`: an installed program has no file beside it.
"""

from postbackd.server.gunicorn_conf import *  # noqa: F403
