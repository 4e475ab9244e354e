"""A gateway process that speaks TLS itself: its health command, and files that change under it."""

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import msgspec
import trustme
from support.control.gateway import GatewayProcess
from support.waiting import wait_until

from wavry_peer.service.commands.health import probe


class Certificate:
    """Files of a certificate for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "cert.pem", directory / "key.pem"
        self.authority = trustme.CA()
        self.issue()

    def issue(self) -> None:
        issued = self.authority.issue_cert("127.0.0.1")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        self.write(chain, issued.private_key_pem.bytes())

    def write(self, certificate: bytes, key: bytes) -> None:
        self.key.touch(mode=0o600)
        self.key.write_bytes(key)
        self.certificate.write_bytes(certificate)

    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def test_gateway_with_tls_of_its_own(tmp_path: Path) -> None:
    files = Certificate(tmp_path)
    environment = {
        "WAVRY_GATEWAY_TLS_CERTIFICATE_FILE": str(files.certificate),
        "WAVRY_GATEWAY_TLS_KEY_FILE": str(files.key),
        # Public without a word of the operator's: TLS is on.
        "WAVRY_GATEWAY_LISTEN": "0.0.0.0:0",
        "WAVRY_GATEWAY_LISTN": "a typing error",
    }
    gateway = GatewayProcess(tmp_path / "gateway", "http://127.0.0.1:9", environment)
    gateway.start()
    try:
        port = gateway.url.rpartition(":")[2]
        assert gateway.url == f"https://0.0.0.0:{port}"
        health = f"https://127.0.0.1:{port}/health"

        def tls() -> str:
            found = []
            answer = probe(
                health,
                timeout_s=10,
                judge=lambda body: found.append(body) or "",
                tls=files.trusted(),
            )
            assert answer.healthy, answer.reason
            return str(found[0]["tls"])

        assert tls() == "ok"
        told = subprocess.run(
            [sys.executable, "-m", "wavry_cp.gateway", "health", "--json"],
            env={**os.environ, **environment, "WAVRY_GATEWAY_LISTEN": f"0.0.0.0:{port}"},
            capture_output=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["url"] == health
        files.write(b"junk", b"junk")
        wait_until(lambda: tls() == "stale", what="the new files are refused, the old ones in use")
        files.issue()
        wait_until(lambda: tls() == "ok", what="the new files are taken")
    finally:
        assert gateway.stop() == 0
    lines = [msgspec.json.decode(line) for line in gateway.log.splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("tls_files_refused") == 1
    (unknown,) = (line for line in lines if line["event"] == "unknown_variable")
    assert unknown["variable"] == "WAVRY_GATEWAY_LISTN"
    assert "WAVRY_GATEWAY_LISTEN" in unknown["next_step"]
