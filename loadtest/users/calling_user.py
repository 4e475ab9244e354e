"""CallingUser: what users with two accounts, one calling the other, share."""

from typing import Any

from loadtest.run.load_run import together

from .online_user import OnlineUser
from .wavry_user import WavryUser

__all__ = ["CallingUser"]


class CallingUser(WavryUser):
    """Registers and logs in two accounts; they are bound as long as the user runs."""

    abstract = True
    service = "gateway"

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._caller = OnlineUser(self.load, self.calls, f"{self.number}-a")
        self._callee = OnlineUser(self.load, self.calls, f"{self.number}-b")

    def set_up(self) -> None:
        """Bring both accounts online.

        Raises:
            LoadFailure: the gateway does not let them.
        """
        together(self._caller.come_online, self._callee.come_online)

    def take_down(self) -> None:
        """Take both offline."""
        super().take_down()
        for account in (self._caller, self._callee):
            account.go_offline()
