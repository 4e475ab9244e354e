"""A system, the doctor of an operator who knows its addresses, and what he says."""

import json
import os
from typing import Any

from typer.testing import CliRunner

from support.system.services import Services
from support.system.system import get_json
from support.waiting import wait_until
from wavry_cp.admin.commands.app import app


class Patient(Services):
    """A system, and the doctor of an operator who knows its addresses."""

    def ctl(self, *arguments: str, token: str = "") -> Any:
        """Run a command in this process: a start of Python costs more than most of them."""
        places: dict[str, str | None] = {name: None for name in os.environ if "WAVRY" in name}
        places |= {
            "WAVRY_MASTER_URL": self.ready["master"]["url"],
            "WAVRY_GATEWAY_URL": self.gateway_url,
        }
        if token == "":
            places["WAVRY_ADMIN_TOKEN_FILE"] = str(self.directory / "admin.token")
        elif token != "none":
            places["WAVRY_ADMIN_TOKEN"] = token
        return CliRunner().invoke(app, arguments, env=places)

    def order(self, *arguments: str) -> None:
        done = self.ctl(*arguments)
        assert done.exit_code == 0, done.stdout + done.stderr

    def examine(self, *, code: int, ops: bool = True, token: str = "") -> dict[str, Any]:
        options = ("--relay-ops", self.ops_url) if ops else ()
        done = self.ctl("doctor", "--watch", "0.2", *options, "--json", token=token)
        assert done.exit_code == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["ok"] is (code == 0)
        for one in answer["findings"]:
            assert one["evidence"]
            assert one["verdict"] == "ok" or one["next_step"], one
        if not answer["ok"]:
            assert answer["summary"].startswith(f"broken: {answer['broken_layer']} - ")
            assert answer["root"]["next_step"] in answer["summary"]
        return answer

    @property
    def relay_id(self) -> str:
        return str(self.ready["relay"]["relay_id"])

    def link_state(self) -> str:
        return str(get_json(self.ops_url + "/health")["master"]["state"])

    def wait_until_well(self) -> None:
        """Registered again, and its event stream is back."""
        self.wait_for_relay()
        wait_until(
            lambda: get_json(self.ops_url + "/health")["master"]["events"], what="event stream"
        )


def root(answer: dict[str, Any]) -> tuple[str, str, str]:
    """Layer, check and subject of what is to be repaired first."""
    assert answer["broken_layer"] == answer["root"]["layer"]
    return answer["root"]["layer"], answer["root"]["check"], answer["root"]["subject"]


def failed(answer: dict[str, Any]) -> dict[str, str]:
    """What explains each failed check, by check and subject; empty for what nothing explains."""
    return {
        f"{one['subject']}: {one['check']}": one["consequence_of"]
        for one in answer["findings"]
        if one["verdict"] == "fail"
    }
