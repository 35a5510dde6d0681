"""Our signature against the vendor's own signer; recorded cases are in clients/declarative/test_convertors.py."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import random
import string
import warnings

from providers.signing import volcengine_headers

ODD = "你好，世界😀 +&=?/#%~-_.!'()*;:@$,[]\"\\<>|`^{}é\u3000\u2028"
NAMES = string.ascii_letters + string.digits + "-_.~"


def text(rng: random.Random, alphabet: str, least: int, most: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(least, most)))


def body_of(rng: random.Random) -> bytes:
    value = {text(rng, ODD + NAMES, 1, 8): text(rng, ODD + NAMES, 0, 40) for _ in range(rng.randint(0, 6))}
    return rng.choice(
        (
            json.dumps(value, ensure_ascii=False).encode(),
            json.dumps(value).encode(),
            json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
            b"",
        )
    )


def test_the_vendors_signer_agrees_on_a_thousand_requests() -> None:
    # Within the corners in which the vendor's own signers agree with each other (WIRE 1.2): names of parameters
    # are plain and not repeated, the path is "/".
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signer = importlib.import_module("volcengine.auth.SignerV4").SignerV4
        param_type = importlib.import_module("volcengine.auth.SignParam").SignParam
        credentials_type = importlib.import_module("volcengine.Credentials").Credentials
    rng = random.Random(20261120)
    for number in range(1000):
        host = rng.choice(("rtc.volcengineapi.com", "open.byteplusapi.com", "127.0.0.1:9000", "x.example:443"))
        query = {text(rng, NAMES, 1, 12): text(rng, ODD + NAMES, 0, 20) for _ in range(rng.randint(0, 6))}
        query |= {"Action": "StartVoiceChat", "Version": "2024-12-01"}
        body, token = body_of(rng), rng.choice(("", "STS" + text(rng, NAMES, 10, 40)))
        access_key, secret_key = text(rng, NAMES, 10, 40), text(rng, string.ascii_letters + "+/=", 20, 60)
        region = rng.choice(("cn-north-1", "ap-singapore-1"))
        now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=rng.randrange(10**8))
        kind = rng.choice(("application/json", "application/json; charset=utf-8"))

        param = param_type()
        param.host, param.method, param.path, param.body = host, "POST", "/", body
        param.query, param.date, param.is_sign_url = dict(query), now, False
        param.header_list = {"Host": host, "Content-Type": kind}
        credentials = credentials_type(access_key, secret_key, "rtc", region, token)
        theirs = signer.sign_only(param, credentials)

        pairs = list(query.items())
        rng.shuffle(pairs)
        ours = volcengine_headers(
            method="POST",
            host=host,
            query=pairs,
            headers={"Content-Type": kind},
            body=body,
            access_key=access_key,
            secret_key=secret_key,
            session_token=token or None,
            region=region,
            service="rtc",
            now=now,
        )
        assert ours["Authorization"] == theirs.authorization, number
        assert (ours["X-Date"], ours["X-Content-Sha256"]) == (theirs.xdate, theirs.xContextSha256)
