"""How the sandbox takes subscriptions: asked back first, in the vendors' shapes, with their refusals."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from sandbox_client import NOW
from serving import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from vendor_spec import assert_response_fits, load_spec

from health_pipeline.sandbox.server import RunningSandbox


@pytest.fixture
def listener() -> Iterator[str]:
    """An address that gives every vendor the answer it wants; below `/deaf` it gives none."""

    async def answer(request: Request) -> Response:
        query = request.query_params
        if b"verification" in await request.body():
            return Response(status_code=201 if "authorization" in request.headers else 401)
        if "hub.challenge" in query:
            return JSONResponse({"hub.challenge": query["hub.challenge"]})
        return JSONResponse({"challenge": query.get("challenge")})

    deaf = Route("/deaf", lambda _: Response(status_code=500), methods=["GET", "POST"])
    with served(Starlette(routes=[deaf, Route("/hook", answer, methods=["GET", "POST"])])) as url:
        yield url


def test_oura(own_sandbox: RunningSandbox, listener: str) -> None:
    spec, path = load_spec("oura.json"), "/v2/webhook/subscription"
    headers = {"x-client-id": "sandbox", "x-client-secret": "sandbox-secret"}
    with httpx.Client(base_url=f"{own_sandbox.url}/oura", headers=headers) as client:
        wanted = {
            "callback_url": f"{listener}/hook",
            "verification_token": "t",
            "event_type": "create",
            "data_type": "sleep",
        }
        assert client.post(path, json={**wanted, "callback_url": f"{listener}/deaf"}).status_code == 400
        made = client.post(path, json=wanted)
        assert_response_fits(spec, path, "post", 201, made.json())
        assert client.post(path, json=wanted).status_code == 409
        wrong = client.post(path, json={**wanted, "data_type": "heartrate"})
        assert wrong.status_code == 422
        assert_response_fits(spec, path, "post", 422, wrong.json())
        assert_response_fits(spec, path, "get", 200, client.get(path).json())
        number = made.json()["id"]
        own_sandbox.app.state.sandbox.fix_time(NOW.replace(month=12))
        renewed = client.put(f"{path}/renew/{number}")
        assert_response_fits(spec, f"{path}/renew/{{id}}", "put", 200, renewed.json())
        assert renewed.json()["expiration_time"] > made.json()["expiration_time"]
        assert client.delete(f"{path}/{number}").status_code == 204
        assert client.get(f"{path}/{number}").status_code == 403
        assert client.get(path, headers={"x-client-secret": "guess"}).status_code == 401


def test_strava(own_sandbox: RunningSandbox, listener: str) -> None:
    client_data = {"client_id": "sandbox", "client_secret": "sandbox-secret"}
    wanted = {**client_data, "callback_url": f"{listener}/hook", "verify_token": "t"}
    with httpx.Client(base_url=f"{own_sandbox.url}/strava") as client:
        path = "/push_subscriptions"
        deaf = client.post(path, data={**wanted, "callback_url": f"{listener}/deaf"})
        assert (deaf.status_code, deaf.json()["errors"][0]["field"]) == (400, "callback url")
        made = client.post(path, data=wanted)
        assert (made.status_code, set(made.json())) == (201, {"id"})
        twice = client.post(path, data=wanted)
        assert (twice.status_code, twice.json()["errors"][0]["code"]) == (400, "already exists")
        assert client.get(path).status_code == 401
        (shown,) = client.get(path, params=client_data).json()
        assert (shown["id"], shown["callback_url"]) == (made.json()["id"], wanted["callback_url"])
        number = f"{path}/{shown['id']}"
        assert [client.delete(number, params=client_data).status_code for _ in range(2)] == [204, 404]


def test_polar(own_sandbox: RunningSandbox, listener: str) -> None:
    spec, path = load_spec("polar-v3.yaml"), "/v3/webhooks"
    auth = base64.b64encode(b"sandbox:sandbox-secret").decode()
    with httpx.Client(
        base_url=f"{own_sandbox.url}/polar", headers={"Authorization": f"Basic {auth}"}
    ) as client:
        assert client.get(path).json() == {"data": []}
        assert client.post(f"{path}/activate").status_code == 204
        wanted = {"events": ["EXERCISE", "SLEEP"], "url": f"{listener}/hook"}
        deaf = client.post(path, json={**wanted, "url": f"{listener}/deaf"})
        assert deaf.status_code == 400
        assert_response_fits(spec, path, "post", 400, deaf.json())
        assert client.post(path, json={**wanted, "events": ["RECHARGE"]}).status_code == 400
        made = client.post(path, json=wanted)
        assert_response_fits(spec, path, "post", 201, made.json())
        assert made.json()["data"]["signature_secret_key"]
        assert client.post(path, json=wanted).status_code == 409
        shown = client.get(path).json()
        assert_response_fits(spec, path, "get", 200, shown)
        # It is said once.
        assert "signature_secret_key" not in orjson.dumps(shown).decode()
        number = f"{path}/{made.json()['data']['id']}"
        patched = client.patch(number, json={"events": ["SLEEP"]})
        assert_response_fits(spec, f"{path}/{{webhook-id}}", "patch", 200, patched.json())
        assert client.post(f"{path}/deactivate").status_code == 200
        assert client.get(path).json()["data"][0]["active"] is False
        assert [client.delete(number).status_code for _ in range(2)] == [204, 404]
        assert client.get(path, headers={"Authorization": "Basic eDp5"}).status_code == 401


def test_withings(own_sandbox: RunningSandbox, listener: str) -> None:
    spec = load_spec("withings.yaml")
    token = own_sandbox.app.state.apis["withings"].oauth.access_token("ada")
    with httpx.Client(
        base_url=f"{own_sandbox.url}/withings", headers={"Authorization": f"Bearer {token}"}
    ) as client:

        def ask(action: str, where: str = "hook", appli: str = "1") -> httpx.Response:
            form = {"action": action, "callbackurl": f"{listener}/{where}", "appli": appli}
            return client.post("/notify", data=form)

        assert ask("subscribe", "deaf").json()["status"] == 293
        assert ask("subscribe", appli="99").json()["status"] == 503
        for appli in ("1", "44", "44"):
            assert ask("subscribe", appli=appli).json()["status"] == 0
        everything = client.post("/notify", data={"action": "list"}).json()
        assert_response_fits(spec, "https://wbsapi.withings.net/notify  ", "post", 200, everything)
        assert [one["appli"] for one in everything["body"]["profiles"]] == [1, 44]
        shown = ask("get", appli="44").json()
        assert_response_fits(spec, "https://wbsapi.withings.net/notify ", "post", 200, shown)
        assert [ask("revoke", appli="44").json()["status"] for _ in range(2)] == [0, 286]


def test_google_health(own_sandbox: RunningSandbox, listener: str) -> None:
    fields = set(load_spec("google-health.json")["schemas"]["Subscriber"]["properties"])
    api = own_sandbox.app.state.apis["google_health"]
    key = httpx.get(f"{own_sandbox.url}/__service_accounts/google_health").json()
    path = f"{own_sandbox.url}/google_health/v4/projects/1/subscribers"

    def token(private: str) -> httpx.Response:
        scope = "https://www.googleapis.com/auth/cloud-platform"
        claims = {"iss": key["client_email"], "aud": key["token_uri"], "scope": scope, "exp": 4_000_000_000}
        assertion = jwt.encode({"alg": "RS256"}, claims, RSAKey.import_key(private))
        grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        return httpx.post(key["token_uri"], data={"grant_type": grant, "assertion": assertion})

    assert token(RSAKey.generate_key(2048).as_pem(private=True).decode()).status_code == 400
    person = {"Authorization": f"Bearer {api.oauth.access_token('ada')}"}
    assert httpx.get(path, headers=person).status_code == 401
    headers = {"Authorization": f"Bearer {token(key['private_key']).json()['access_token']}"}
    with httpx.Client(headers=headers, params={"subscriberId": "mine"}) as client:
        wanted = {
            "endpointUri": f"{listener}/hook",
            "subscriberConfigs": [{"dataTypes": ["steps"], "subscriptionCreatePolicy": "AUTOMATIC"}],
            "endpointAuthorization": {"secret": "Bearer ours"},
        }
        deaf = client.post(path, json={**wanted, "endpointUri": f"{listener}/deaf"})
        assert (deaf.status_code, deaf.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")
        made = client.post(path, json=wanted).json()
        assert made["done"]
        assert client.post(path, json=wanted).status_code == 409
        (shown,) = client.get(path).json()["subscribers"]
        assert set(shown) <= fields
        assert (shown["state"], shown["endpointAuthorization"]) == ("ACTIVE", {"secretSet": True})
        assert [client.delete(f"{path}/mine").status_code for _ in range(2)] == [200, 404]
