"""Backup and restore by the documented commands: under load, and where it must refuse."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from support.control.gateway import (
    PASSWORD,
    eventually,
    gateway_process,
    http_call,
)
from support.control.lease_parts import parties, renewal
from support.control.master import FakeRelay, MasterProcess, client_for
from support.system.system import clean_environment
from support.waiting import wait_until

PASSPHRASE = "a passphrase of the test"


def secret(directory: Path) -> str:
    path = directory / "backup.pass"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    return str(path)


def ctl(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        env=clean_environment(**environ),
    )  # fmt: skip


def done(*arguments: str | Path, **environ: str) -> dict[str, Any]:
    result = ctl(*arguments, "--json", **environ)
    assert result.returncode == 0, result.stdout + result.stderr
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def refused(*arguments: str | Path) -> dict[str, str]:
    result = ctl(*arguments, "--json")
    assert result.returncode == 1, result.stdout + result.stderr
    answer: dict[str, str] = json.loads(result.stdout)
    return answer


class Registrations:
    """Accounts that register all the time; `answered` grows by their names."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url
        self.answered: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Registrations"]:
        tasks = [asyncio.create_task(self._register(n)) for n in range(4)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _register(self, number: int) -> None:
        for name in (f"user-{number}-{turn}" for turn in range(100_000)):
            body = {"username": name, "password": PASSWORD}
            status, _, _ = await http_call(self._http, self._url, "POST", "/auth/register", body)
            assert status == 201
            self.answered.append(name)

    async def more(self, than: int) -> None:
        await eventually(lambda: len(self.answered) > than, deadline_s=60)


async def test_a_gateway_is_restored_with_every_account_answered_before_its_backup(tmp_path):
    limits = {"WAVRY_GATEWAY_REGISTER_BURST": "100000"}
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "gateway.wavrybak"
    options = ("--passphrase-file", secret(tmp_path))
    with gateway_process(old, "http://127.0.0.1:1", limits) as process:
        async with aiohttp.ClientSession() as http:
            async with Registrations(http, process.url).running() as load:
                await load.more(20)
                before = list(load.answered)
                made = await asyncio.to_thread(
                    done, "backup", file, "--data-dir", process.data_dir, *options
                )
                await load.more(len(load.answered))  # The service goes on.
            body = {"username": before[0], "password": PASSWORD}
            status, login, _ = await http_call(http, process.url, "POST", "/auth/login", body)
            assert status == 200
            late = ("--data-dir", process.data_dir)
            assert refused("restore", file, *late, *options)["error"] == "in_use"
        assert not list(process.data_dir.glob(".backup-*"))
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_bytes()
    assert b"SQLite format" not in content
    assert before[0].encode() not in content
    assert int(made["rows"]["users"]) >= len(before)

    data = new / "data"
    where = ("--data-dir", data, *options)
    assert done("restore", file, *where)["service"] == "gateway"
    assert {path.stat().st_mode & 0o077 for path in (data, *data.iterdir())} == {0}
    with gateway_process(new, "http://127.0.0.1:1", limits) as process:
        async with aiohttp.ClientSession() as http:
            for name in before[:3]:
                body = {"username": name, "password": PASSWORD}
                assert (await http_call(http, process.url, "POST", "/auth/login", body))[0] == 200
            _, ready, _ = await http_call(http, process.url, "GET", "/ready")
            assert ready["warning"] == ""
            # Logged in after the backup began: this login is not in it.
            path, token = "/v1/sessions", login["token"]
            assert (await http_call(http, process.url, "GET", path, token=token))[0] == 401
    with contextlib.closing(sqlite3.connect(data / "gateway.db")) as db:
        held = {name for (name,) in db.execute("SELECT username FROM users")}
    assert held >= set(before)


async def test_a_master_is_restored_with_its_keys_tokens_settings_and_leases(tmp_path):
    old, file, identity = MasterProcess(tmp_path / "old"), tmp_path / "b", tmp_path / "identity"
    recipient = str(done("backup", "keygen", "--output", identity)["recipient"])
    with old:
        async with client_for(old.url, old.files) as client:
            await FakeRelay(client).join()
            issued = await client.post("/v1/leases", parties(), token="service")
            assert issued.status == 201
            made = await asyncio.to_thread(
                lambda: done("backup", file, "--recipient", recipient, **old.files.environ())
            )
    kinds = [item["kind"] for item in made["items"]]
    assert kinds == ["database", "key", "key", "key", "service token", "admin token", "settings"]
    opens = ("--identity-file", identity)
    assert done("backup", "show", file, *opens)["rows"] == made["rows"]
    done("backup", "verify", file, *opens)

    home = tmp_path / "new"
    home.mkdir()
    places = (
        "--data-dir", home / "data", "--keys-dir", home / "keys",
        "--service-token-file", home / "service.token",
        "--admin-token-file", home / "admin.token", "--settings-file", home / "settings.env",
    )  # fmt: skip
    damaged = tmp_path / "damaged"
    damaged.write_bytes(file.read_bytes()[:-1000])
    assert refused("restore", damaged, *places, *opens)["error"] == "backup_unusable"
    assert not list(home.iterdir())
    answer = done("restore", file, *places, *opens)
    assert len(answer["written"]) == 7
    again = done("restore", file, *places, *opens)
    assert (again["written"], len(again["unchanged"])) == ([], 7)
    for name in ("service.token", "admin.token"):
        assert (home / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    assert "WAVRY_MASTER_DATA_DIR=" in (home / "settings.env").read_text()
    assert (home / "keys").stat().st_mode & 0o777 == 0o700

    new = MasterProcess.__new__(MasterProcess)
    new.__dict__ |= old.__dict__ | {
        "environ": {
            "WAVRY_MASTER_DATA_DIR": str(home / "data"),
            "WAVRY_MASTER_KEYS_DIR": str(home / "keys"),
        }
    }  # fmt: skip
    with new:
        async with client_for(new.url, old.files) as client:
            # The lease of before is known, and is told by the same key.
            answer_again = await client.post(
                "/v1/leases/renew", renewal(issued.body), token="service"
            )
            assert answer_again.status in (200, 503), answer_again  # Its relay has not come back.
            ready = await client.get("/ready")
            assert ready.body["warning"] == ""
    # Relays that knew rows behind those of the backup must not pass over new ones.
    assert log_id(home / "data") != log_id(old.files.data_dir)
    before = log_id(home / "data")
    with new:
        pass
    assert log_id(home / "data") == before


def log_id(data: Path) -> str:
    with contextlib.closing(sqlite3.connect(data / "master.db")) as db:
        return str(db.execute("SELECT log_id FROM revocation_log").fetchone()[0])


def test_a_used_directory_that_meets_an_empty_database_is_told_until_it_is_back(tmp_path):
    with gateway_process(tmp_path, "http://127.0.0.1:1") as process:
        assert process.stop() == 0
        kept = process.data_dir / "gateway.db"
        kept.rename(tmp_path / "kept.db")
        process.start()
        assert "database_is_not_the_one_before" in process.log
        urls = {"WAVRY_GATEWAY_URL": process.url, "WAVRY_MASTER_URL": "http://127.0.0.1:1"}
        diagnosis = ctl("doctor", "--watch", "1", "--json", **urls)
        findings = json.loads(diagnosis.stdout)["findings"]
        (found,) = [
            one for one in findings if one["subject"] == "gateway" and "lost" in one["evidence"]
        ]
        assert found["verdict"] == "warn"
        assert "wavryctl restore" in found["next_step"]
        assert process.stop() == 0
        for path in process.data_dir.glob("gateway.db*"):
            path.unlink()
        (tmp_path / "kept.db").rename(kept)
        lines = process.log.count("database_is_not_the_one_before")
        process.start()
        assert process.log.count("database_is_not_the_one_before") == lines


def test_a_backup_that_is_killed_leaves_nothing_that_the_next_one_does_not_remove(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(data / "gateway.db")) as db:
        db.execute("CREATE TABLE filler (content BLOB)")
        db.executemany("INSERT INTO filler VALUES (?)", [(bytes(1_000_000),)] * 60)
        db.commit()
    file, where = tmp_path / "b", ("--data-dir", data, "--passphrase-file", secret(tmp_path))
    command = [sys.executable, "-m", "wavry_cp.admin", "backup", file, *where]
    with subprocess.Popen(list(map(str, command)), env=clean_environment()) as process:
        wait_until(lambda: list(data.glob(".backup-*")) or list(tmp_path.glob(".b.*")))
        process.kill()
    assert not file.exists()
    done("backup", file, *where)
    assert {path.name for path in data.iterdir()} <= {
        "gateway.db",
        "gateway.db-shm",
        "gateway.db-wal",
    }
    assert not list(tmp_path.glob(".b.*"))
