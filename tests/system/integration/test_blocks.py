"""Blocks of a relay, seen and lifted by the operator over the master."""

import json
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from support.system.services import Services
from support.system.system import clean_environment
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets

BAD_TOKEN = b"v4.public." + b"A" * 300


class BlockingServices(Services):
    """Services whose relay asks every path for a cookie, and blocks after five violations."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.settings["relay"] |= {
            "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S": "0",
            "WAVRY_RELAY_BLOCK_AFTER": "5",
        }
        self.settings["master"]["WAVRY_MASTER_HEARTBEAT_INTERVAL_MS"] = "1000"

    def ctl(self, *arguments: str) -> Any:
        """Run a command with --json, as from another host; what it answers."""
        done = subprocess.run(
            [sys.executable, "-m", "wavry_cp.admin", *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=clean_environment(
                WAVRY_MASTER_URL=str(self.ready["master"]["url"]),
                WAVRY_GATEWAY_URL=self.gateway_url,
                WAVRY_ADMIN_TOKEN_FILE=str(self.directory / "admin.token"),
            ),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def violate(self) -> int:
        """Present a bad token over a proven path; the relay's reason."""
        host, port = self.ready["relay"]["udp"][0].rsplit(":", 1)
        sid, cookie = uuid.uuid4().bytes, c.NO_COOKIE
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect((host, int(port)))
            for counter in range(1, 3):
                sock.send(
                    packets.build_present(
                        sid, c.Role.CLIENT, BAD_TOKEN, counter=counter, cookie=cookie,
                        sign=lambda _message: bytes(64),
                    )
                )  # fmt: skip
                body = packets.parse_packet(sock.recv(2048)).body
                if isinstance(body, packets.PathChallenge):
                    cookie = body.cookie
        assert isinstance(body, packets.LeaseReject)
        return int(body.reason)


def test_block_after_repeated_violations_is_listed_and_cleared_by_wavryctl(tmp_path: Path) -> None:
    with BlockingServices(tmp_path / "services") as services:
        relay_id = str(services.ready["relay"]["relay_id"])
        assert services.ctl("blocks", "list") == {"blocks": []}
        wait_until(
            lambda: services.violate() == c.RejectReason.BANNED, timeout_s=30, what="a block"
        )
        wait_until(
            lambda: len(services.ctl("blocks", "list")["blocks"]) == 1, timeout_s=30, what="report"
        )
        (block,) = services.ctl("blocks", "list", "--relay", relay_id)["blocks"]
        assert (block["relay_id"], block["subnet"]) == (relay_id, "127.0.0.1/32")
        assert block["reason"] == "invalid_signature"
        assert block["since"] < block["until"]
        where = ("--relay", relay_id, "--reason", "our own test")
        done = services.ctl("blocks", "clear", block["subnet"], *where)
        assert done["confirmed"] is True
        assert services.ctl("blocks", "list") == {"blocks": []}, "done when the command is"
        assert services.violate() == c.RejectReason.INVALID_SIGNATURE
        acts = [act for act in services.ctl("audit")["entries"] if act["reason"] == "our own test"]
        assert [act["who"] for act in acts] == ["admin"]
