"""gunicorn, with our modules imported before it looks at the directory that it is started in.

gunicorn and Python put that directory before the installed modules: a `config.py` or `storage.py`
of somebody else's there would be taken for ours. `postback serve` runs this with `python -P`.
"""

from gunicorn.app.wsgiapp import run

# They import all the others.
import server  # noqa: F401
import worker  # noqa: F401

if __name__ == "__main__":
    run()
