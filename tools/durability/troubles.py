"""Troubles: senders go on while the disk, the file or the clock of a running server fails."""

from collections.abc import Mapping
from typing import Self

from tools.durability.audit import Findings, audit, find_unbooked
from tools.durability.senders import Click, Load, make_postbacks, resend
from tools.durability.servers import Home, Server, Setup, fetch_status, wait_until

# One with a kept-alive connection and one without.
SENDERS = 2

# More than senders can send in the seconds of a trouble.
POSTBACKS = 20_000

# Much longer than the receiver waits for a locked database; no test waits for it in vain.
TROUBLE_SECONDS = 60.0

# This many acknowledgements show that the service works.
ENOUGH_ACKS = 15


class Duty:
    """A server and steady senders; the senders go on whatever happens to the server."""

    def __init__(self, home: Home, setup: Setup, environ: Mapping[str, str] | None = None) -> None:
        """Start the server."""
        self.home = home
        self.server = Server(home, setup, environ)
        self._load: Load | None = None

    def __enter__(self) -> Self:
        """Return itself, with the server up and the senders running."""
        try:
            # Not /health: the service would trust its result for two seconds more.
            self.server.wait_until_up()
            # A worker that starts after a trouble has begun is another case.
            self.server.wait_until_complete()
            self.begin()
            self.await_acks()
        except BaseException:
            self.server.kill_all()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End senders and server."""
        try:
            self.load.stop()
        finally:
            self.server.kill_all()

    @property
    def load(self) -> Load:
        """The senders."""
        assert self._load is not None
        return self._load

    def begin(self) -> None:
        """Start the senders."""
        # No clicks from before: writing them beside the server would go past its shim.
        postbacks = make_postbacks("d", POSTBACKS, [Click.UNKNOWN, Click.LATE])
        self._load = Load(self.server.port, postbacks, "duty", SENDERS)
        self._load.start()

    def await_acks(self, more: int = ENOUGH_ACKS) -> None:
        """Wait until so many more postbacks are acknowledged."""
        acks = self.load.ledger.acks
        wanted = len(acks) + more
        wait_until(lambda: len(acks) >= wanted, TROUBLE_SECONDS, "postbacks are acknowledged")

    def await_refusal(self) -> None:
        """Wait until postbacks are answered 503, and /health is too."""
        ledger = self.load.ledger
        before = ledger.unavailable
        self.server.wait_for_health(503, TROUBLE_SECONDS)
        wait_until(lambda: ledger.unavailable > before, TROUBLE_SECONDS, "postbacks are refused")

    def is_healthy(self) -> bool:
        """Return whether /health says ok."""
        return fetch_status(self.server.port, "/health") == 200

    def settle(self) -> Findings:
        """Stop the senders, send unanswered postbacks again, and compare."""
        ledger = self.load.stop()
        resend(self.server.port, ledger)
        findings = audit(self.home.database, ledger.acks)
        unbooked = find_unbooked(self.home.database, ledger.sent, self.home.unknown_subid)
        return findings._replace(lost=findings.lost + unbooked + ledger.flaws)
