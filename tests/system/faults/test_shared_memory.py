"""What other users put into /dev/shm, and a host without it, as a relay meets them."""

import os
import signal
from pathlib import Path

from support.needs import need_root
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess

NOBODY = 65534


def test_a_name_that_another_user_keeps_stops_no_start(tmp_path: Path) -> None:
    """He saw it while the relay ran, and takes it, and the old well-known one, when it is down."""
    need_root("it makes files of another user")
    relay = RelayProcess(tmp_path, Mint())
    squatted = []
    try:
        relay.start()
        seen = relay.shm_path
        assert len(seen.name) > len(f"wavry-{relay.relay_id}-") + 16
        relay.send_signal(signal.SIGKILL)
        relay.wait()
        seen.unlink(missing_ok=True)
        squatted = [seen, seen.with_name(f"wavry-{relay.relay_id}")]
        for path in squatted:
            path.write_bytes(bytes(8))
            os.chown(path, NOBODY, NOBODY)
        relay.start()
        assert relay.health()["status"] == "ok"
        assert relay.stop() == 0
        assert all(path.stat().st_uid == NOBODY for path in squatted)
    finally:
        for path in squatted:
            path.unlink(missing_ok=True)
        relay.close()
