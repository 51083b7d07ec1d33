"""A Postgres server of one's own: Debian's binaries, a fresh cluster in a folder, loopback only."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PostgresServer", "find_postgres", "postgres_server"]


@dataclass(frozen=True)
class PostgresServer:
    """Where a server listens. `environment` is what deploy/dagster.yaml reads."""

    port: int
    password: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(self.port),
            "DAGSTER_PG_USERNAME": "dagster",
            "DAGSTER_PG_PASSWORD": self.password,
            "DAGSTER_PG_DB": "postgres",
        }


def find_postgres() -> Path | None:
    """The folder of the newest server's binaries, None if there is none."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


@contextmanager
def postgres_server(binaries: Path) -> Iterator[PostgresServer]:
    """A running server, gone at the end. It does not run as root, so root runs it as the user `postgres`."""
    as_user: dict[str, int | str] = {}
    with tempfile.TemporaryDirectory(prefix="lake-postgres-") as folder:
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            as_user = {"user": account.pw_uid, "group": account.pw_gid}
        password = secrets.token_hex(16)
        secret = Path(folder, "password")
        secret.write_text(password)
        secret.chmod(0o644)
        data = f"{folder}/data"

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "-D", data, *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user)  # type: ignore[call-overload]

        run("initdb", "-U", "dagster", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield PostgresServer(port, password)
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
