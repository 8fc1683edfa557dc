"""What the API says was used, against sums over the ledger's rows by a way of their own."""

import csv
import io
import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.ledger.client import connect
from tests.page.site import Site
from tests.web.api_process import ApiProcess

Row = dict[str, Any]


@pytest.fixture(scope="module")
def entries(site: Site) -> list[Row]:
    """Every row of the ledger."""
    site.wait_counted()
    assert site.address is not None
    client = connect(site.address)
    columns = (
        "occurred_at", "port_id", "user_id", "group_id", "organization_id", "feature", "kind",
        "provider", "model", "billing_scope", "requests", "unpriced_requests", "total_tokens",
        "cost_nano", "event_id", "currency",
    )  # fmt: skip
    found = client.query(f"SELECT {', '.join(columns)} FROM usage_ledger").result_rows
    client.close()
    return [dict(zip(columns, row, strict=True)) for row in found]


def cost(rows: list[Row]) -> str | None:
    """The cost of rows as the API writes it."""
    known = [row["cost_nano"] for row in rows if row["cost_nano"] is not None]
    if not known:
        return None
    text = f"{Decimal(sum(known)) / 10**9:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def calls(rows: list[Row]) -> int:
    """How many calls rows stand for; a correction's row stands for none."""
    return sum(row["requests"] for row in rows)


def ask(client: httpx.Client, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    assert "as_of" in answer.json()
    return answer.json()


def pages(client: httpx.Client, path: str, rows: str, **parameters: Any) -> Iterator[Row]:
    cursor: dict[str, str] = {}
    while True:
        body = ask(client, path, **parameters, **cursor)
        yield from body[rows]
        if body["next"] is None:
            return
        cursor = {"cursor": body["next"]}


def test_usage_is_split_and_filtered_as_asked(client: httpx.Client, entries: list[Row]) -> None:
    split: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in entries:
        if row["port_id"] != "harbor-2":
            continue
        split[row["model"], row["feature"]].append(row)
    found = list(pages(client, "/v1/usage", "rows", group_by="model,feature", limit=7,
                       port_id="harbor-2"))  # fmt: skip
    assert {(row["model"], row["feature"]): row["cost"] for row in found} == {
        key: cost(rows) for key, rows in split.items()
    }
    assert len(found) == len(split) > 7
    assert sum(row["requests"] for row in found) == sum(map(calls, split.values()))
    [whole] = ask(client, "/v1/usage")["rows"]
    assert (whole["cost"], whole["requests"]) == (cost(entries), calls(entries))
    assert whole["cost_nano"] == sum(row["cost_nano"] or 0 for row in entries)


def test_usage_between_two_instants(client: httpx.Client, entries: list[Row]) -> None:
    end = datetime.now(UTC) - timedelta(hours=30)
    start = end - timedelta(days=2)
    span = {"from": start.isoformat(), "to": end.isoformat()}
    [row] = ask(client, "/v1/usage", **span)["rows"]
    inside = [one for one in entries if start <= one["occurred_at"] < end]
    assert (row["requests"], row["cost"]) == (calls(inside), cost(inside))
    assert inside


def test_names_stand_beside_the_ids(client: httpx.Client) -> None:
    body = ask(client, "/v1/usage", group_by="port_id,user_id", limit=10_000)
    assert body["names"]["port:harbor-1"] == {
        "display_name": "North Quay",
        "email": "north@example.com",
    }
    assert {row["port_id"] for row in body["rows"]} > {"harbor-1", "harbor-2"}


def test_usage_as_csv(client: httpx.Client) -> None:
    asked = {"group_by": "provider,model", "limit": 3}
    answer = client.get("/v1/usage", params=asked, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    plain = client.get("/v1/usage", params=asked)
    assert answer.headers["x-as-of"] == plain.json()["as_of"]
    assert (answer.headers["vary"], plain.headers["vary"]) == ("Accept", "Accept")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    shown = ask(client, "/v1/usage", **asked)["rows"]
    assert [(row["model"], row["cost"] or None) for row in rows] == [
        (row["model"], row["cost"]) for row in shown
    ]
    following = answer.headers["link"].partition("<")[2].partition(">")[0]
    more = client.get(following, headers={"Accept": "text/csv"})
    assert more.status_code == 200
    assert more.text.splitlines()[1] != answer.text.splitlines()[1]


@pytest.mark.usefixtures("one_day")
@pytest.mark.parametrize("billing_scope", ["org", "user", None])
def test_the_summary(client: httpx.Client, entries: list[Row], billing_scope: str | None) -> None:
    asked = {} if billing_scope is None else {"billing_scope": billing_scope}
    body = ask(client, "/v1/usage/summary", **asked)
    today = datetime.now(UTC).date()
    counted = [row for row in entries if billing_scope in (None, row["billing_scope"])]
    month = [row for row in counted if row["occurred_at"].date() >= today.replace(day=1)]
    of_today = [row for row in month if row["occurred_at"].date() == today]
    assert (body["month"]["cost"], body["month"]["requests"]) == (cost(month), calls(month))
    assert (body["today"]["cost"] or "0") == (cost(of_today) or "0")
    assert body["currency"] == "USD"
    assert [row["date"] for row in body["daily"]] == [
        (today - timedelta(days=back)).isoformat() for back in reversed(range(30))
    ]
    for row in body["daily"]:
        rows = [one for one in entries if one["occurred_at"].date().isoformat() == row["date"]]
        of_org = [one for one in rows if one["billing_scope"] == "org"]
        assert row["requests"] == calls(rows)
        assert row["org_requests"] == calls(of_org)
        assert (row["org_cost"] or "0") == (cost(of_org) or "0")
    by_user: dict[str, list[Row]] = defaultdict(list)
    for one in month:
        by_user[one["user_id"]].append(one)
    by_user.pop("", None)
    dearest = sorted(by_user.values(), key=lambda rows: -sum(r["cost_nano"] or 0 for r in rows))
    assert [row["cost"] for row in body["top_users"]] == [cost(rows) for rows in dearest[:10]]
    assert len(body["top_models"]) <= 10
    assert sum(row["requests"] for row in body["by_kind"]) == calls(month)
    policy = body["org_policy"]
    assert (policy["scope"], policy["monthly"]["limit"], policy["daily"]["limit"]) == (
        "all", "2500", "150",
    )  # fmt: skip


@pytest.mark.usefixtures("one_day")
def test_what_a_port_used_and_may_use(client: httpx.Client, entries: list[Row]) -> None:
    body = ask(client, "/v1/usage/ports/harbor-1")
    assert (body["unit"], body["period"], body["policy_source"]) == ("cost", "month", "own")
    first = datetime.now(UTC).date().replace(day=1)
    month = [
        row for row in entries
        if row["port_id"] == "harbor-1" and row["occurred_at"].date() >= first
    ]  # fmt: skip
    of_org = [row for row in month if row["billing_scope"] == "org"]
    assert (body["used"], body["hard_cap"], body["soft_cap"]) == (cost(of_org), "55", "40")
    by_feature: dict[str, list[Row]] = defaultdict(list)
    for row in month:
        by_feature[row["feature"]].append(row)
    assert {row["feature"]: (row["tokens"], row["cost"], row["calls"])
            for row in body["features"]} == {
        feature: (sum(row["total_tokens"] for row in rows), cost(rows), calls(rows))
        for feature, rows in by_feature.items()
    }  # fmt: skip
    assert body["name"]["display_name"] == "North Quay"
    assert body["forecast"]["text"]


def test_a_port_without_a_policy_shows_the_default_and_what_it_used(
    client: httpx.Client,
) -> None:
    asked = {"unit": "tokens", "period": "month"}
    body = ask(client, "/v1/usage/ports/pier-a", **asked)
    assert (body["enabled"], body["status"], body["soft_cap"], body["hard_cap"]) == (
        False, "disabled", 100_000, 500_000,
    )  # fmt: skip
    assert body["used"] > 0
    week = ask(client, "/v1/usage/ports/nobody", unit="cost", period="week")
    assert (week["status"], week["used"], week["hard_cap"]) == ("no-policy", "0", None)
    every = ask(client, "/v1/usage/ports/pier-a")
    assert (every["policy_source"], every["policy"]["scope"]) == ("wildcard", "port:*")


def test_groups_organisations_and_everything(client: httpx.Client, entries: list[Row]) -> None:
    org = ask(client, "/v1/usage/organizations/northwind")
    assert (org["organization_id"], org["hard_cap"]) == ("northwind", "900")
    group = ask(client, "/v1/usage/groups/team-lab")
    assert (group["group_id"], group["status"]) == ("team-lab", "disabled")
    whole = ask(client, "/v1/usage/all", unit="tokens", period="rolling-30d")
    assert whole["used"] == sum(row["total_tokens"] for row in entries)


def test_the_events_of_a_user_page_by_page(client: httpx.Client, entries: list[Row]) -> None:
    users = ask(client, "/v1/usage/users", limit=1)["users"]
    user = users[0]["user_id"]
    own = [row for row in entries if row["user_id"] == user]
    found = list(pages(client, f"/v1/usage/users/{user}", "events", limit=9))
    assert {row["event_id"] for row in found} == {row["event_id"] for row in own}
    assert len(found) == len(own) > 9
    moments = [row["occurred_at"] for row in found]
    assert moments == sorted(moments, reverse=True)
    assert ask(client, f"/v1/usage/users/{user}")["total"] == len(own)
    assert ask(client, "/v1/usage/users/nobody") | {"as_of": 0} == {
        "as_of": 0, "user_id": "nobody", "name": None, "currency": "USD", "total": 0,
        "events": [], "names": {}, "next": None,
    }  # fmt: skip


def test_lists_are_ordered_searched_and_paged(client: httpx.Client) -> None:
    ids = [row["port_id"] for row in pages(client, "/v1/usage/ports", "ports", limit=1_000)]
    assert len(ids) == len(set(ids)) >= 12
    first = ask(client, "/v1/usage/ports", limit=5)
    second = ask(client, "/v1/usage/ports", limit=5, cursor=first["next"])
    assert [row["port_id"] for row in first["ports"] + second["ports"]] == ids[:10]
    costs = [Decimal(row["cost"]) for row in ask(client, "/v1/usage/ports")["ports"]]
    assert costs == sorted(costs, reverse=True)
    shares = [row["cap_used_pct"] for row in ask(client, "/v1/usage/ports", order="cap")["ports"]]
    known = [share for share in shares if share is not None]
    assert known == sorted(known, reverse=True)
    assert shares[: len(known)] == known
    by_name = ask(client, "/v1/usage/ports", search="NORTH q")["ports"]
    assert [row["port_id"] for row in by_name] == ["harbor-1"]
    assert ask(client, "/v1/usage/ports", search="<b>")["ports"][0]["port_id"] == "harbor-9"
    assert ask(client, "/v1/usage/ports", search="nothing like it")["total"] == 0


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/usage?group_by=colour", "group_by"),
        ("/v1/usage?model_id=x", "model_id"),
        ("/v1/usage?from=yesterday", "from"),
        ("/v1/usage?from=2026-02-01&to=2026-01-01", "to"),
        ("/v1/usage?from=0001-01-01", "from"),
        ("/v1/usage?limit=0", "limit"),
        ("/v1/usage?cursor=x", "cursor"),
        ("/v1/usage?kind=video", "kind"),
        (f"/v1/usage?model={'x' * 257}", "model"),
        ("/v1/usage/summary?billing_scope=both", "billing_scope"),
        ("/v1/usage/ports?order=size", "order"),
        ("/v1/usage/ports/x?unit=bytes", "unit"),
        ("/v1/usage/ports/x?period=year", "period"),
        (f"/v1/usage/ports/{'x' * 129}", "scope"),
        ("/v1/usage/users/x?cursor=bm90", "cursor"),
        ("/v1/usage/users/x?from=2026-01-01T10:00:00Z", "from"),
        ("/v1/rejected?reason=ugly", "reason"),
        ("/v1/rejected?cursor=1-2", "cursor"),
        ("/v1/rejected/count?hours=0", "hours"),
        ("/v1/prices/explain?provider=x", "model"),
        ("/v1/names/all", "scope"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_field(
    client: httpx.Client, path: str, field: str
) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json().get("field")) == (400, field), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_names_are_set_shown_logged_and_forgotten(client: httpx.Client) -> None:
    path = "/v1/names/user:n%2F1"
    body = {"display_name": "<script>alert(1)</script>", "email": "n@example.com"}
    made = client.put(path, json=body)
    assert (made.status_code, made.json()) == (201, {"scope": "user:n/1", **body})
    assert client.put(path, json=body).status_code == 200
    assert client.get(path).json() == made.json()
    asked = client.get("/v1/names", params={"scope": ["user:n/1", "user:none"]}).json()
    assert asked == {"names": [made.json()], "next": None}
    bad = client.put(path, json={"email": "no address"})
    assert (bad.status_code, bad.json()["field"]) == (400, "email")
    assert client.put("/v1/names/user:*", json=body).status_code == 400
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 404
    assert client.get(path).status_code == 404
    changes = client.get("/v1/changes?what=name&limit=200").json()["changes"]
    mine = [one for one in changes if one["key"] == "user:n/1"]
    assert [(one["before"], one["after"]) for one in mine] == [
        ({"display_name": True, "email": True}, None),
        (None, {"display_name": True, "email": True}),
    ]
    assert {one["who"] for one in mine} == {"key:ada"}
    assert "script" not in json.dumps(changes)  # kept for ever, so names are not in it


def test_refused_records_newest_first(client: httpx.Client) -> None:
    found = list(pages(client, "/v1/rejected", "records", limit=11))
    places = [(row["partition"], row["offset"]) for row in found]
    assert len(places) == len(set(places)) > 22
    for partition in {one for one, _ in places}:
        own = [offset for one, offset in places if one == partition]
        assert own == sorted(own, reverse=True)
    assert {"reason", "detail", "source_topic", "source_partition", "source_offset",
            "rejected_at", "preview"} <= found[0].keys()  # fmt: skip
    large = [row for row in found if row["reason"] == "too-large"]
    assert all(len(row["preview"]) <= 2_000 and row["is_cut"] for row in large)
    assert large
    only = list(pages(client, "/v1/rejected", "records", limit=50, reason="too-old"))
    assert only == [row for row in found if row["reason"] == "too-old"]
    count = ask(client, "/v1/rejected/count")
    assert (count["total"], count["complete"]) == (len(found), True)
    assert count["by_reason"]["too-large"] == len(large)


def test_models_without_a_price(client: httpx.Client, entries: list[Row]) -> None:
    lacking: dict[tuple[str, str], int] = defaultdict(int)
    for row in entries:
        lacking[row["provider"], row["model"]] += row["unpriced_requests"]
    found = ask(client, "/v1/usage/unpriced")["models"]
    assert {(row["provider"], row["model"]): row["unpriced_requests"] for row in found} == {
        model: calls for model, calls in lacking.items() if calls
    }


def test_a_price_is_explained(client: httpx.Client) -> None:
    found = ask(client, "/v1/prices/explain", provider="openai", model="gpt-5")
    assert (found["status"], found["source"]) == ("priced", "book")


def test_a_key_of_one_port_sees_that_port(site: Site) -> None:
    with site.http("harbor") as client:
        assert client.get("/v1/whoami").json()["ports"] == ["harbor-7"]
        rows = ask(client, "/v1/usage", group_by="port_id")["rows"]
        assert {row["port_id"] for row in rows} == {"harbor-7"}
        assert {row["port_id"] for row in ask(client, "/v1/usage/ports")["ports"]} == {"harbor-7"}
        summary = ask(client, "/v1/usage/summary")
        assert summary["org_policy"] is None
        assert summary["month"]["requests"] <= sum(row["requests"] for row in rows)
        for path in ("/v1/usage?port_id=harbor-1", "/v1/usage/ports/harbor-1",
                     "/v1/usage/groups/team-lab", "/v1/usage/all", "/v1/names/port:harbor-1",
                     "/v1/names/user:u1"):  # fmt: skip
            assert client.get(path).status_code == 403, path
        assert ask(client, "/v1/usage/ports/harbor-7")["port_id"] == "harbor-7"
        events = [
            row
            for user in ask(client, "/v1/usage/users", limit=5)["users"]
            for row in ask(client, f"/v1/usage/users/{user['user_id']}")["events"]
        ]
        assert {row["port_id"] for row in events} == {"harbor-7"}
        refused = list(pages(client, "/v1/rejected", "records"))
        assert {row["port_id"] for row in refused} == {"harbor-7"}
        assert client.get("/v1/names").json()["names"][0]["scope"] == "port:harbor-7"
        assert client.put("/v1/names/port:harbor-1", json={}).status_code == 403


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [("rita", "/v1/usage", 200), ("service", "/v1/usage", 403), ("service", "/v1/whoami", 200),
     ("service", "/v1/rejected", 403), ("service", "/v1/names", 403)],
)  # fmt: skip
def test_roles(site: Site, key: str, path: str, status: int) -> None:
    with site.http(key) as client:
        assert client.get(path).status_code == status
        assert client.put("/v1/names/user:x", json={"display_name": "x"}).status_code == 403


def test_the_stream_tells_of_the_scopes_asked_for(client: httpx.Client) -> None:
    told: set[str] = set()
    asked = {"scope": ["port:harbor-1", "all"]}
    with client.stream("GET", "/v1/state/stream", params=asked) as answer:
        name = ""
        for line in answer.iter_lines():
            field, _, text = line.partition(": ")
            if field == "event":
                name = text
            elif field == "data" and name == "state":
                told.add(json.loads(text)["scope"])
            if name == "synced":
                break
    assert told == {"port:harbor-1", "all"}
    assert client.get("/v1/state/stream?scope=team:x").status_code == 400


def test_without_a_ledger_the_rest_goes_on(kafka: str, tmp_path: Path) -> None:

    settings = {"TALLYPORT_CLICKHOUSE_URL": "http://127.0.0.1:9/tallyport"}
    process = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", tmp_path, settings)
    with process.running():
        with process.http() as client:
            for path in ("/v1/usage", "/v1/usage/summary", "/v1/usage/ports/x", "/v1/usage/users"):
                answer = client.get(path)
                assert answer.status_code == 503, path
                assert answer.headers["content-type"] == "application/problem+json"
                assert int(answer.headers["retry-after"]) >= 1
                assert "does not answer" in answer.json()["detail"]
            assert client.get("/v1/budgets").status_code == 200
            assert client.get("/health/ready").status_code == 200
            assert client.get("/").status_code == 200
        assert process.stop() == 0, process.errors


@pytest.mark.parametrize("path", ["ports", "groups", "organizations"])
@pytest.mark.parametrize("unit", ["tokens", "cost"])
def test_of_a_wildcard_itself_nothing_is_used(client: httpx.Client, path: str, unit: str) -> None:
    answer = client.get(f"/v1/usage/{path}/*?unit={unit}&period=week")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["scope"].endswith(":*")
    assert (found["used"], found["policy"], found["features"]) in [(0, None, []), ("0", None, [])]
