"""gunicorn, with our modules imported before it looks at the directory that it is started in.

gunicorn and Python put that directory before the installed modules: somebody else's `storage.py` or
`rates.py` there would be taken for ours. `postback serve` runs this with `python -P`.
"""

from gunicorn.app.wsgiapp import run

# They import all the others.
from postbackd.server import (
    gunicorn_conf,  # noqa: F401
    worker,  # noqa: F401
)

if __name__ == "__main__":
    run()
