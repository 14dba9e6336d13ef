"""A process that writes to the database and is killed."""

import signal
import subprocess
import sys
from pathlib import Path

from cli_calls import build_environment

# Leaves the write-ahead log as it is: a process that is killed closes nothing.
KILLED = """
import os, signal
from pathlib import Path
from storage import open_database
db = open_database(Path("postback.db"), "USD")
for commit in range(40):
    with db.transaction():
        db.db.executemany("INSERT INTO clicks (subid) VALUES (?)",
            ((f"k-{commit}-{row}",) for row in range(20)))
    if commit == 20:
        assert db.checkpoint_wal()
{behind}
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_and_kill(path: Path, behind: str = "") -> None:
    """Write 800 clicks, checkpoint half of them, do what `behind` says, and be killed."""
    script = KILLED.replace("{behind}", behind)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=path.parent, env=build_environment({}), check=False
    )
    assert done.returncode == -signal.SIGKILL
