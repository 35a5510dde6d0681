"""Sign-in under real concurrency: several processes, one database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serving import PASSWORD, Server

pytestmark = pytest.mark.servers


def test_of_two_uses_of_one_refresh_token_at_once_one_wins_and_the_family_ends(demo_server: Server) -> None:
    def refresh(token: str) -> httpx.Response:
        return httpx.post(f"{demo_server.url}/api/auth/token/refresh", json={"refresh": token}, timeout=15)

    with ThreadPoolExecutor(4) as together:
        for _ in range(6):
            credentials = {"username": "bob", "password": PASSWORD, "site": "demo"}
            first = httpx.post(f"{demo_server.url}/api/auth/token", json=credentials, timeout=15).json()
            answers = sorted(together.map(refresh, [first["refresh"]] * 4), key=lambda answer: answer.status_code)
            assert [answer.status_code for answer in answers] == [200, 401, 401, 401]
            won = answers[0].json()
            assert refresh(won["refresh"]).status_code == 401
            me = httpx.get(
                f"{demo_server.url}/api/auth/me", headers={"Authorization": f"Bearer {won['access']}"}, timeout=15
            )
            assert me.status_code == 401
