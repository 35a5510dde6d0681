"""`manage.py demo` against real rows."""

import io
import stat
from pathlib import Path

import pytest
from django.core.management import call_command
from pytest_django import Settings

from chatsite.management.commands.demo import EMAIL_DOMAIN, base_url
from conversations.models import Document, Membership, Site, User

PEOPLE = {"alice", "bob", "dave", "staff", "carol", "staff2", "admin"}


@pytest.fixture(autouse=True)
def _quick(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.VAR_DIR = tmp_path
    settings.DEMO_PASSWORD = "橡果 o'k"


def demo(*args: str) -> str:
    """Return what the command printed."""
    said = io.StringIO()
    call_command("demo", *args, stdout=said)
    return said.getvalue()


def rows() -> list[object]:
    """Return everything the command may write, ordered."""
    return [
        *Site.objects.order_by("pk").values_list(),
        *User.objects.order_by("pk").values_list(),
        *Membership.across_sites.order_by("pk").values_list(),
        *Document.across_sites.order_by("pk").values_list(),
    ]


def test_an_empty_database_gets_both_sites_and_everybody() -> None:
    demo()
    assert {
        (m.user.username, m.site.slug, m.role, m.status)
        for m in Membership.across_sites.select_related("site", "user")
    } == {
        ("alice", "demo", "member", "approved"),
        ("bob", "demo", "member", "approved"),
        ("dave", "demo", "member", "pending"),
        ("staff", "demo", "manager", "approved"),
        ("carol", "demo2", "member", "approved"),
        ("staff2", "demo2", "manager", "approved"),
        ("admin", "demo", "manager", "approved"),
    }
    assert set(User.objects.filter(is_staff=True).values_list("username", "is_superuser")) == {
        ("staff", False),
        ("staff2", False),
        ("admin", True),
    }
    assert all(user.check_password("橡果 o'k") for user in User.objects.all())
    assert {site.locale for site in Site.objects.all()} == {"zh-hans"}


def test_a_decided_membership_says_who_decided_and_when() -> None:
    demo()
    alice = Membership.across_sites.get(user__username="alice")
    dave = Membership.across_sites.get(user__username="dave")
    assert alice.decided_by is not None and alice.decided_by.username == "staff"
    assert alice.decided_at is not None
    assert (dave.decided_by, dave.decided_at) == (None, None)


def test_a_second_call_changes_nothing() -> None:
    demo()
    before = rows()
    demo()
    assert rows() == before


def test_what_a_person_changed_stays() -> None:
    demo()
    Membership.across_sites.filter(user__username="dave").update(status="approved")
    Site.objects.filter(slug="demo").update(name="我们的小站")
    before = rows()
    demo()
    assert rows() == before


def test_what_was_deleted_comes_back() -> None:
    demo()
    User.objects.get(username="bob").delete()
    demo()
    bob = User.objects.get(username="bob")
    assert bob.check_password("橡果 o'k")
    assert bob.memberships.get().site.slug == "demo"


def test_when_the_password_changes_all_users_follow(settings: Settings) -> None:
    demo()
    settings.DEMO_PASSWORD = "另一个密码"
    demo()
    assert [user.check_password("另一个密码") for user in User.objects.all()] == [True] * len(PEOPLE)


def test_the_password_is_hashed_once_for_all_and_never_again() -> None:
    demo()
    hashes = set(User.objects.values_list("password", flat=True))
    demo()
    assert set(User.objects.values_list("password", flat=True)) == hashes
    assert len(hashes) == 1


def test_without_a_given_password_one_is_made_up_once_and_kept_to_ourselves(
    settings: Settings, tmp_path: Path
) -> None:
    settings.DEMO_PASSWORD = ""
    demo()
    kept = tmp_path / "demo.password"
    password = kept.read_text().strip()
    said = demo()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text().strip() == password and len(password) >= 12
    assert f"Password of all: {password} " in said
    assert User.objects.get(username="alice").check_password(password)


def test_a_password_file_left_empty_by_a_killed_start_is_filled(settings: Settings, tmp_path: Path) -> None:
    settings.DEMO_PASSWORD = ""
    (tmp_path / "demo.password").touch(mode=0o600)
    demo()
    password = (tmp_path / "demo.password").read_text().strip()
    assert len(password) >= 12
    assert User.objects.get(username="alice").check_password(password)


def test_a_database_with_sites_of_its_own_is_left_alone() -> None:
    Site.objects.create(slug="acorn", name="橡果公司", locale="zh-hans")
    before = rows()
    assert demo() == "demo: left alone; this database has 1 site(s) of its own.\n"
    assert rows() == before


def test_demo_users_left_beside_real_sites_are_pointed_out() -> None:
    demo()
    Site.objects.create(slug="acorn", name="橡果公司", locale="zh-hans")
    assert f"{len(PEOPLE)} demo user(s) can still sign in" in demo()


def test_force_says_so_and_never_takes_over_an_account_of_the_same_name() -> None:
    Site.objects.create(slug="acorn", name="橡果公司", locale="zh-hans")
    real = User.objects.create_user("alice", "alice@example.org", "她自己的密码")
    said = demo("--force")
    real.refresh_from_db()
    assert "forced, although this database has 1 site(s)" in said
    assert "alice is an account of somebody else's; left alone." in said
    assert real.check_password("她自己的密码") and not real.memberships.exists()
    assert set(User.objects.filter(email__endswith=EMAIL_DOMAIN).values_list("username", flat=True)) == (
        PEOPLE - {"alice"}
    )


def test_the_curl_it_prints_survives_a_shell(settings: Settings) -> None:
    assert r"""-d '{"username": "alice", "password": "橡果 o'"'"'k", "site": "demo"}'""" in demo()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("::", "http://[::1]:8123"),
        ("::1", "http://[::1]:8123"),
        ("chat.example.org", "http://chat.example.org:8123"),
    ],
)
def test_the_address_it_prints_can_be_opened(host: str, url: str) -> None:
    assert base_url(host, 8123) == url


def test_the_demo_site_knows_its_handbook_and_only_once() -> None:
    demo()
    document = Document.across_sites.get()
    assert (document.site.slug, document.status, document.passage_count) == ("demo", "ready", 7)
    assert document.site.settings == {"knowledge": "before"}
    document.delete()
    demo()
    assert Document.across_sites.count() == 0


def test_a_bare_demo_knows_nothing() -> None:
    demo("--bare")
    assert Document.across_sites.count() == 0
    assert Site.objects.get(slug="demo").settings == {}
