"""The locustfile: which users there are.  Run locust from the top of the repository.

``locust -f loadtest/locustfile.py RelayUser --headless -u 10 -t 1m``; docs/load-testing.md has
the rest.
"""

from locust import events

from loadtest.run.hooks import register
from loadtest.users.gateway_user import GatewayUser
from loadtest.users.master_user import MasterUser
from loadtest.users.relay_user import RelayUser
from loadtest.users.session_user import SessionUser

__all__ = ["GatewayUser", "MasterUser", "RelayUser", "SessionUser"]

register(events)
