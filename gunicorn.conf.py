"""gunicorn's settings, found here by gunicorn itself: `gunicorn postback:application` suffices.

`postback serve` uses the same ones, from any directory. They are written, each with its reason, in
`server/gunicorn_conf.py`: an installed program has no file beside it.
"""

from postbackd.server.gunicorn_conf import *  # noqa: F403
