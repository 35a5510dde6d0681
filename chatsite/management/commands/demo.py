"""`manage.py demo`: two sites with people in them, to try the product with; harmless when called again.

Only a database without other sites is touched, unless told `--force`. What a person changed meanwhile (a name,
a status, a password of their own) stays, but for the common password: when that changes, all demo users follow.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.core.management.base import BaseCommand, CommandParser
from django.db import connection, transaction

from conversations.context.documents import add_document
from conversations.db import database_now, tenant
from conversations.models import Document, Membership, Site, User

SITES = {"demo": "橡果小站", "demo2": "白桦小站"}
HANDBOOK = Path(__file__).resolve().parent.parent / "demo.md"
EMAIL_DOMAIN = "demo.invalid"
"""Marks the users this command made: it never touches an account of the same name that somebody else made."""


@dataclass(frozen=True, slots=True)
class Person:
    """One demo user, and what they are in their site."""

    username: str
    name: str
    site: str
    role: str = Membership.Role.MEMBER
    status: str = Membership.Status.APPROVED
    is_staff: bool = False
    is_superuser: bool = False

    @property
    def email(self) -> str:
        """Return the address that marks the account as ours."""
        return f"{self.username}@{EMAIL_DOMAIN}"


PEOPLE = (
    Person("alice", "艾丽丝", "demo"),
    Person("bob", "鲍勃", "demo"),
    Person("dave", "戴夫", "demo", status=Membership.Status.PENDING),
    Person("staff", "小站管理员", "demo", role=Membership.Role.MANAGER, is_staff=True),
    Person("carol", "卡萝", "demo2"),
    Person("staff2", "白桦管理员", "demo2", role=Membership.Role.MANAGER, is_staff=True),
    # Of a site too: whoever manages the models by token needs a membership to sign in with.
    Person("admin", "总管理员", "demo", role=Membership.Role.MANAGER, is_staff=True, is_superuser=True),
)


class Command(BaseCommand):
    """Creates what is missing of the demo, and says how to sign in."""

    help = "Create the demo sites and users, and print how to sign in."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add --force and --bare."""
        parser.add_argument(
            "--force", action="store_true", help="also in a database that has sites other than the demo's"
        )

        parser.add_argument("--bare", action="store_true", help="without the handbook that answers lean on")

    def handle(self, *args: Any, **options: Any) -> None:
        """Create what is missing; leave a database with real sites alone."""
        others = Site.objects.exclude(slug__in=SITES).count()
        if others and not options["force"]:
            self.stdout.write(f"demo: left alone; this database has {others} site(s) of its own.")
            if left := User.objects.filter(email__endswith=f"@{EMAIL_DOMAIN}", is_active=True).count():
                self.stdout.write(f"demo: note: {left} demo user(s) can still sign in; deactivate or delete them.")
            return
        if others:
            self.stdout.write(f"demo: forced, although this database has {others} site(s) of its own.")
        password, source = _password()
        for foreign in _create_what_is_missing(password, is_bare=options["bare"]):
            self.stdout.write(f"demo: {foreign} is an account of somebody else's; left alone.")
        self._say_how_to_sign_in(password, source)

    def _say_how_to_sign_in(self, password: str, source: str) -> None:
        url = base_url(settings.HOST, settings.PORT)
        body = json.dumps({"username": "alice", "password": password, "site": "demo"}, ensure_ascii=False)
        self.stdout.write(
            f"""
Chat   {url}/        site demo: alice, bob (approved), dave (waits for approval)
                     site demo2: carol
Admin  {url}/admin/  staff (site demo), staff2 (site demo2), admin (everything)
Password of all: {password}   ({source})

curl -s {url}/api/auth/token -H 'Content-Type: application/json' -d {shlex.quote(body)}
"""
        )


def base_url(host: str, port: int) -> str:
    """Return the address a person on this machine opens; "everywhere" becomes the loopback."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  # compared, not bound
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}:{port}"


def _password() -> tuple[str, str]:
    """Return the common password and where it came from; made up once and kept when none is given."""
    if settings.DEMO_PASSWORD:
        return settings.DEMO_PASSWORD, "from DEMO_PASSWORD"
    path = Path(settings.VAR_DIR) / "demo.password"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(9) + "\n")
    kept = path.read_text(encoding="utf-8").strip()
    if not kept:  # a start that was killed between creating and writing
        kept = secrets.token_urlsafe(9)
        path.write_text(kept + "\n", encoding="utf-8")
    return kept, f"kept in {path}"


@transaction.atomic
def _create_what_is_missing(password: str, *, is_bare: bool) -> list[str]:
    """Return the names that belong to somebody else; everything else exists afterwards, or nothing changed."""
    with connection.cursor() as cursor:  # two starts at once take turns
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('chatsite.demo'))")
    sites = {
        slug: Site.objects.get_or_create(slug=slug, defaults={"name": name, "locale": "zh-hans"})[0]
        for slug, name in SITES.items()
    }
    if not is_bare:
        _give_knowledge(sites["demo"])
    users = {user.username: user for user in User.objects.filter(username__in=[p.username for p in PEOPLE])}
    foreign = [p.username for p in PEOPLE if p.username in users and users[p.username].email != p.email]
    ours = [p for p in PEOPLE if p.username not in foreign]
    _set_passwords(ours, users, password)
    staff = {p.site: users[p.username] for p in reversed(ours) if p.role == Membership.Role.MANAGER}
    for person in ours:
        _join(sites[person.site], users[person.username], person, decided_by=staff.get(person.site))
    return foreign


def _give_knowledge(site: Site) -> None:
    """Give the site its handbook and let answers lean on it; once, so that what a person changed stays."""
    if "knowledge" in site.settings:
        return
    with tenant(site.pk):
        if not Document.objects.for_site(site).exists():
            title = "橡果小站使用手册"
            add_document(site.pk, filename=HANDBOOK.name, content=HANDBOOK.read_bytes(), title=title, url="/")
    site.settings = {**site.settings, "knowledge": "before"}
    site.save(update_fields=["settings"])


def _set_passwords(ours: list[Person], users: dict[str, User], password: str) -> None:
    """Create the missing users into `users`; when the common password changed, give it to all.

    Hashing is slow on purpose, so it happens once, and only when something is to be written. One check of
    one user says whether the password changed.
    """
    existing = [users[p.username] for p in ours if p.username in users]
    missing = [p for p in ours if p.username not in users]
    changed = bool(existing) and not existing[0].check_password(password)
    if not (missing or changed):
        return
    encoded = make_password(password)
    for person in missing:
        users[person.username] = User.objects.create(
            username=person.username,
            email=person.email,
            first_name=person.name,
            is_staff=person.is_staff,
            is_superuser=person.is_superuser,
            password=encoded,
        )
    if changed:
        User.objects.filter(pk__in=[user.pk for user in existing]).update(password=encoded)


def _join(site: Site, user: User, person: Person, *, decided_by: User | None) -> None:
    """Make the person a member of the site, unless they are one already in whatever state."""
    with tenant(site.pk):
        if Membership.objects.for_site(site).filter(user=user).exists():
            return
        decided = person.status != Membership.Status.PENDING
        Membership.across_sites.create(
            site=site,
            user=user,
            role=person.role,
            status=person.status,
            nickname=person.name,
            decided_by=decided_by if decided else None,
            decided_at=database_now() if decided else None,
        )
