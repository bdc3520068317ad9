"""docs/operations/postgresql.md: its statements, run as they are written."""
import re

import pytest

from conftest import EXAMPLES, ROOT, Processes, cli, start_service
from postgres import PASSWORD, running_postgres


@pytest.fixture
def database():
    with running_postgres() as server:
        yield server


def run_server(binaries, folder, database, user):
    """One server as that role, which takes a job; stopped again."""
    group = Processes(folder)
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(PASSWORD + "\n")
    try:
        service = start_service(group, binaries, folder, worker=False, flags=[
            f"--job-store={database.uri.replace('//quantry@', f'//{user}@')}", f"--job-store-password-file={password}",
            f"--blob-dir={folder}/blobs", f"--artifact-root=file://{folder}/artifacts"])
        cli(binaries, service["tenant"], "submit", EXAMPLES / "stories260k", "--id", f"of-{user}", "--method", "rtn", "--group-size", -1)
        return cli(binaries, service["tenant"], "list")
    finally:
        group.stop()


def test_servers_that_cannot_change_the_schema(binaries, tmp_path, database):
    """The owner makes the tables and grants; a server as `app` works, and with a table of a later schema too."""
    page = (ROOT / "docs/operations/postgresql.md").read_text()
    grants = [line.strip() for line in re.findall(r"^    (.* TO app;)$", page, re.M)]
    assert len(grants) >= 2
    run_server(binaries, tmp_path, database, "quantry")
    quoted = PASSWORD.replace("'", "''")
    database.sql(f"CREATE ROLE app LOGIN PASSWORD '{quoted}'", *grants)
    assert "of-quantry" in run_server(binaries, tmp_path, database, "app")
    database.sql("CREATE TABLE of_a_later_schema (n INTEGER)")
    assert database.sql("SET ROLE app", "INSERT INTO of_a_later_schema VALUES (1)", "SELECT n FROM of_a_later_schema") == "1"
