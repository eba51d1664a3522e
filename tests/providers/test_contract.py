"""What every provider has to have and to do, whoever adds it: read each failure as the next thing to write.

The providers come from the registry. What is true of one alone is in its own tests.
"""

from __future__ import annotations

import copy
import datetime as dt
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import orjson
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers.base import (
    QUARANTINE_SCHEMA,
    Entity,
    Paging,
    Parsed,
    Provider,
    RawDocument,
    UnreadableFileError,
    WindowRule,
)
from health_pipeline.providers.registry import all_providers
from health_pipeline.sandbox.context import Sandbox, Settings
from health_pipeline.sandbox.people import DEFAULT_SEED, population
from health_pipeline.sandbox.routers import ProviderApi, provider_apis
from health_pipeline.sandbox.samples import NOW

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data" / "samples"
DBT = ROOT / "dbt_project"
GOLDEN = ROOT / "tests" / "canonical" / "golden"

PROVIDERS = list(all_providers().values())
#: An API that is shut down holds a name for old data, and what was kept of it comes as files.
LIVING = [provider for provider in PROVIDERS if provider.successor is None or provider.sniff is not None]
FETCHED = [provider for provider in LIVING if provider.door == "fetch" and provider.successor is None]
#: Entities that have raw objects of their own; the others are filled from these.
WITH_OBJECTS = [
    pytest.param(provider, entity, id=f"{provider.name}-{entity.name}")
    for provider in LIVING
    for entity in provider.entities
    if provider.sniff is not None or entity.endpoint is not None or provider.door == "webhook"
]
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
#: What Postgres takes for a name.
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST_NAME = 63
#: The longest that a provider without webhooks may leave a person's data old.
_LONGEST_POLL_HOURS = 4

#: Columns of a key that tell devices apart, and are null where the provider does not name one.
_MAY_BE_UNKNOWN = {"device", "device_serial"}
#: Entities that have no sample, and why.
_WITHOUT_SAMPLE = {
    ("fhir", "patient"): "samples name nobody",
    ("polar", "body_temperature"): "the watch of the sandbox has no such sensor",
}

each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
each_living = pytest.mark.parametrize("provider", LIVING, ids=lambda provider: provider.name)
each_fetched = pytest.mark.parametrize("provider", FETCHED, ids=lambda provider: provider.name)


@functools.cache
def apis() -> dict[str, ProviderApi]:
    return provider_apis(Sandbox(population(DEFAULT_SEED), DEFAULT_SEED, lambda: NOW, Settings()))


# Declarations


@each_provider
def test_says_what_it_is(provider: Provider) -> None:
    module = importlib.import_module(f"health_pipeline.providers.{provider.name}")
    assert module.PROVIDER is provider, "the module has the provider's name"
    assert module.__doc__ and module.__doc__.splitlines()[0].endswith("."), "a docstring: what it is, its API"
    assert provider.title.strip() == provider.title != ""
    assert [other.name for other in PROVIDERS if other.title == provider.title] == [provider.name]
    assert provider.parser_version >= 1
    assert provider.parse.__doc__, "what becomes a row, what is quarantined, what is skipped"


@each_provider
def test_names_are_snake_case(provider: Provider) -> None:
    names = [provider.name]
    for entity in provider.entities:
        names += [entity.name, *entity.schema.names]
    assert [name for name in names if not _NAME.fullmatch(name)] == []
    tables = [f"stg_{provider.name}__{entity.name}" for entity in provider.entities]
    assert [name for name in [*names, *tables] if len(name) > _LONGEST_NAME] == []
    assert len({entity.name for entity in provider.entities}) == len(provider.entities)


@each_provider
def test_comes_by_its_door(provider: Provider) -> None:
    if provider.successor is not None:
        assert provider.successor in all_providers()
        assert all_providers()[provider.successor].successor is None
        assert provider.fetch is None, "nothing is fetched from an API that is shut down"
    elif provider.door == "webhook":
        assert provider.webhook is not None and provider.webhook.carries == "data"
        assert (provider.fetch, provider.identify, provider.base_url, provider.sniff) == (None,) * 4
    elif provider.door == "upload":
        assert provider.sniff is not None, "files are recognised by their content"
        assert (provider.fetch, provider.identify, provider.base_url, provider.webhook) == (None,) * 4
    else:
        assert provider.fetch is not None and provider.identify is not None
        assert provider.fetch.__doc__ and provider.identify.__doc__


@each_fetched
def test_has_one_way_of_consent(provider: Provider) -> None:
    ways = [way for way in ("oauth", "hosted_link", "password") if getattr(provider, way) is not None]
    assert len(ways) == 1, f"one of oauth, hosted_link and password, not {ways}"
    if provider.password is not None:
        assert provider.password.warning.endswith("."), "what the person has to accept"
        assert not provider.enabled, "an API that wants a person's password is off by default"


@each_fetched
def test_addresses_are_https(provider: Provider) -> None:
    addresses: list[str | None] = list(provider.regions.values())
    discovered = provider.oauth is not None and provider.oauth.discover is not None
    if provider.base_url is not None:
        addresses.append(provider.base_url)
    else:
        assert discovered, (
            "without a base_url every organisation has a server, whose addresses are discovered"
        )
    if provider.oauth is not None and not discovered:
        addresses += [provider.oauth.authorize_url, provider.oauth.token_url]
        addresses += [provider.oauth.revoke_url] if provider.oauth.revoke_url is not None else []
    for address in addresses:
        parts = urlsplit(address or "")
        assert (parts.scheme, bool(parts.hostname), parts.query) == ("https", True, ""), address
        assert not parts.path.endswith("/"), f"paths of entities begin with the slash: {address}"


@each_fetched
def test_limits_are_known(provider: Provider) -> None:
    assert provider.limit_signal, "how the provider says that the limit is reached"
    for budget in provider.budgets:
        assert budget.requests > 0 and budget.seconds > 0


@each_fetched
def test_is_asked_often_enough(provider: Provider) -> None:
    longest = 24 if provider.webhook is not None else _LONGEST_POLL_HOURS
    assert 1 <= provider.poll_hours <= longest, "without a webhook, only asking brings the day's data"
    if provider.webhook is not None:
        assert provider.webhook.scheme and 200 <= provider.webhook.status < 300
        assert 400 <= provider.webhook.refusal < 500


@each_living
def test_entities_are_declared_in_full(provider: Provider) -> None:
    assert provider.entities
    for entity in provider.entities:
        problems = [*_table_problems(entity), *_request_problems(provider, entity)]
        assert not problems, f"{provider.name}.{entity.name}: {'; '.join(problems)}"


def _table_problems(entity: Entity) -> Iterator[str]:
    if not entity.description.endswith("."):
        yield "the description says the grain and ends with a period"
    if not entity.key or len(set(entity.key)) != len(entity.key):
        yield "the key has columns, each once"
    for column in entity.key:
        if column not in entity.schema.names:
            yield f"the key column {column} is not in the schema"
        elif entity.schema.field(column).nullable and column not in _MAY_BE_UNKNOWN:
            yield f"the key column {column} may be null"
    if len(set(entity.schema.names)) != len(entity.schema):
        yield "two columns have one name"
    for field in entity.schema:
        if pa.types.is_timestamp(field.type) and field.type.unit != "us":
            yield f"{field.name}: instants are in microseconds"


def _request_problems(provider: Provider, entity: Entity) -> Iterator[str]:
    if entity.window not in get_args(WindowRule) or entity.paging not in get_args(Paging):
        yield f"window {entity.window!r}, paging {entity.paging!r}"
    if not 0 <= entity.lookback_days <= 31:
        yield f"a look-back of {entity.lookback_days} days"
    if entity.max_window_days is not None and not 1 <= entity.max_window_days <= 366:
        yield f"windows of {entity.max_window_days} days"
    has_window = bool(entity.lookback_days or entity.max_window_days)
    if entity.window == "everything" and has_window:
        yield "what has no window has neither look-back nor longest window"
    scopes = provider.oauth.scopes if provider.oauth is not None else ()
    if provider.door == "fetch" and entity.endpoint is None:
        if has_window or entity.scope is not None or entity.paging != "none":
            yield "what is filled from other objects is not asked for"
    elif scopes and entity.scope not in scopes:
        yield f"the scope {entity.scope!r} is not one of those that consent asks for"


# Files beside the module


@each_fetched
def test_sandbox_speaks_its_api(provider: Provider) -> None:
    api = apis().get(provider.name)
    assert api is not None, f"health_pipeline/sandbox/routers/{provider.name} has an API of this name"
    assert api.samples, "requests whose answers are kept under data/samples"
    known = {entity.name.casefold() for entity in provider.entities}
    sampled = {file.split(".")[0].casefold() for file in api.samples}
    asked = {
        entity.name.casefold()
        for entity in provider.entities
        if entity.endpoint is not None and (provider.name, entity.name) not in _WITHOUT_SAMPLE
    }
    assert asked - sampled == set(), "each entity with an endpoint has a sample"
    assert sampled & known, "samples are named after entities"
    start, end = NOW.date() - dt.timedelta(days=30), NOW.date()
    values = api.truth(api.sample_person, start, end)
    assert values, "the sandbox says what the warehouse must hold"
    catalogue = {line.split(",")[0] for line in (DBT / "seeds" / "metric_types.csv").read_text().splitlines()}
    assert {value.metric_type for value in values} <= catalogue
    assert all(start <= value.local_date <= end for value in values)
    if provider.oauth is not None:
        scopes = api.oauth_rules.scopes
        assert not scopes or set(provider.oauth.scopes) <= set(scopes), "scopes the sandbox knows"


@each_living
def test_samples_and_golden_rows_are_there(provider: Provider) -> None:
    folder = SAMPLES / provider.name
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    assert files, f"data/samples/{provider.name}: python -m health_pipeline.sandbox.samples"
    if provider.sniff is None and provider.door != "webhook":
        assert files == set(apis()[provider.name].samples), "python -m health_pipeline.sandbox.samples"
    golden = GOLDEN / f"{provider.name}.csv"
    assert golden.is_file(), "WRITE_GOLDEN=1 pytest tests/canonical/test_golden.py, then check it by eye"


@each_living
def test_staging_models_are_there(provider: Provider) -> None:
    folder = DBT / "models" / "staging" / provider.name
    models = {path.stem for path in folder.glob("*.sql")}
    missing = {f"stg_{provider.name}__{entity.name}" for entity in provider.entities} - models
    assert missing == set(), f"dbt_project/models/staging/{provider.name} has a view for each entity"
    described: set[str] = set()
    sources: set[str] = set()
    for path in folder.glob("*.yml"):
        content = yaml.safe_load(path.read_text())
        described |= {model["name"] for model in content.get("models", ()) if model.get("description")}
        sources |= {
            table["name"]
            for source in content.get("sources", ())
            if source["name"] == f"staging_{provider.name}"
            for table in source["tables"]
        }
    assert models <= described, "each view has a description"
    assert {entity.name for entity in provider.entities} - sources == set(), "and its table is a source"
    variables = yaml.safe_load((DBT / "dbt_project.yml").read_text())["vars"]
    lists = [name for name in variables if name.endswith("_providers") and provider.name in variables[name]]
    assert lists, "the unions of dbt_project.yml name it"


# Parsing


def contexts(provider: Provider) -> list[dict[str, str]]:
    """None, and what the pages of its samples carry."""
    api = apis().get(provider.name)
    found: list[dict[str, str]] = [{}]
    for sample in api.samples.values() if api is not None else ():
        if dict(sample.context) not in found:
            found.append(dict(sample.context))
    return found


def parse(provider: Provider, entity: str, content: bytes, context: dict[str, str]) -> Parsed | None:
    """The parser's answer, which has to hold together; None where it is a file that cannot be read."""
    document = RawDocument(entity, content, RECEIVED_AT, "Europe/Berlin", context)
    try:
        parsed = provider.parse(document)
    except UnreadableFileError as error:
        assert provider.sniff is not None and str(error)
        return None
    assert parsed.records_in == parsed.records_loaded + parsed.quarantine.num_rows + sum(
        parsed.skipped.values()
    )
    assert min(parsed.records_in, parsed.records_loaded, *parsed.skipped.values(), 0) == 0
    for name, table in parsed.tables.items():
        assert table.schema == provider.entity(name).schema
        table.validate(full=True)
        for field, column in zip(table.schema, table.columns, strict=True):
            assert field.nullable or column.null_count == 0, f"{name}.{field.name} is null"
    assert parsed.quarantine.schema == QUARANTINE_SCHEMA
    refused = parsed.quarantine.to_pylist()
    words = [*(row["reason"] for row in refused), *parsed.skipped]
    assert [word for word in words if not _NAME.fullmatch(word)] == []
    assert all(row["location"] and row["entity"] == entity for row in refused)
    assert not any("\0" in str(value) for row in refused for value in row.values())
    if parsed.records_loaded == 0:
        assert sum(table.num_rows for table in parsed.tables.values()) == 0
    return parsed


RUBBISH = {
    "nothing": b"",
    "blank": b" \n",
    "open brace": b"{",
    "array": b"[]",
    "array of null": b"[null]",
    "null": b"null",
    "number": b"1e999",
    "text": b'"text"',
    "object": b"{}",
    "page of HTML": b"<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head></html>",
    "zeros": bytes(5 * 2**20),
    "not UTF-8": b"\xff\xfe\x00\xd8{}",
    "cut JSON": b'{"data": [{"id": 1}, {"id"',
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"data":' * 100_000,
    "closed deep arrays": b"[" * 900 + b"]" * 900,
    "deep in an envelope": b'{"data": [{"id": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    "items that are none": b'{"data": [null, 1, "x", [], {}], "records": [null], "entry": [null]}',
    "envelopes of the wrong type": b'{"data": {"data": []}, "records": {}, "entry": {}, "body": [], "user": 1}',
}


@pytest.mark.parametrize(("provider", "entity"), WITH_OBJECTS)
def test_rubbish_is_refused_and_counted(provider: Provider, entity: Entity) -> None:
    for name, content in RUBBISH.items():
        for context in contexts(provider):
            parsed = parse(provider, entity.name, content, context)
            assert parsed is None or parsed.records_loaded == 0, f"{name} is loaded"
            if parsed is not None and name in ("nothing", "open brace", "page of HTML", "zeros", "cut JSON"):
                assert parsed.quarantine.num_rows > 0, f"{name} passes for an answer without data"


def samples(provider: Provider) -> list[tuple[str, bytes, dict[str, str]]]:
    """The provider's own samples: entity, bytes, context."""
    assert (SAMPLES / provider.name).is_dir(), "python -m health_pipeline.sandbox.samples"
    api = apis().get(provider.name)
    entities = {entity.name.casefold(): entity.name for entity in provider.entities}
    found = []
    for path in sorted((SAMPLES / provider.name).iterdir()):
        if api is None:
            found.append((provider.entities[0].name, path.read_bytes(), dict[str, str]()))
        elif (entity := entities.get(path.name.split(".")[0].casefold())) is not None:
            found.append((entity, path.read_bytes(), dict(api.samples[path.name].context)))
    return found


@each_living
def test_samples_are_read_without_refusal_or_notes(provider: Provider) -> None:
    loaded = 0
    for entity, content, context in samples(provider):
        parsed = parse(provider, entity, content, context)
        assert parsed is not None
        assert parsed.quarantine.num_rows == 0 or provider.sniff is not None, parsed.quarantine.to_pylist()[
            :3
        ]
        assert parsed.notes == () or provider.sniff is not None, f"{entity}: fields we do not know"
        loaded += parsed.records_loaded
    assert loaded > 0


#: In place of any value: other types, and values at and beyond the limits of what columns hold.
ODD_VALUES: list[Any] = [
    *(None, True, False, "", "x", "\0", "a\0b", "-1", "NaN", "1e400", "\u0665", " 12 ", "12,5"),
    *(0, -1, 1, 2**15, 2**31, 2**53 + 1, 2**63 - 1, 2**64 - 1, -(2**63), 1e308, -1e308, 1e-320, 0.5, -0.0),
    *("2026-02-30", "2026-11-20", "0000-00-00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999-12:00"),
    *(
        "2026-11-20T10:00:00",
        "2026-11-20T10:00:00Z",
        "2026-11-20T10:00:00+99:00",
        "24:00",
        "PT",
        "P1D",
        "-PT5S",
    ),
    *([], {}, [None], [[]], [1, "x"], [{}], {"": None}, {"value": []}, {"data": {}}),
]
DAMAGES = ("drop", "replace", "nest", "wrap", "repeat")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, below in items:
        yield (*path, step)
        yield from places(below, (*path, step))


def shortened(value: Any, longest: int = 4) -> Any:
    """The same with few items in each list, so that a damage is not lost in the crowd."""
    if isinstance(value, dict):
        return {name: shortened(below, longest) for name, below in value.items()}
    if isinstance(value, list):
        return [shortened(below, longest) for below in value[:longest]]
    return value


def damage(body: Any, data: st.DataObject) -> Any:
    path = data.draw(st.sampled_from(list(places(body)) or [()]), label="place")
    if not path:
        return data.draw(st.sampled_from(ODD_VALUES), label="value")
    parent = functools.reduce(lambda value, step: value[step], path[:-1], body)
    how = data.draw(st.sampled_from(DAMAGES), label="damage")
    if how == "drop":
        del parent[path[-1]]
    elif how == "nest":
        parent[path[-1]] = {"value": parent[path[-1]]}
    elif how == "wrap":
        parent[path[-1]] = [parent[path[-1]]]
    elif how == "repeat" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[path[-1]]))
    else:
        parent[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(ODD_VALUES), label="value"))
    return body


@functools.cache
def small_samples(provider: str) -> list[tuple[str, Any, dict[str, str]]]:
    """Samples to damage, as JSON text or lines of text; lists and files are cut short."""
    found: list[tuple[str, Any, dict[str, str]]] = []
    for entity, content, context in samples(all_providers()[provider]):
        try:
            body: Any = orjson.dumps(shortened(orjson.loads(content)))
        except orjson.JSONDecodeError:
            body = content.decode("utf-8-sig", "replace").splitlines()[:20]
        found.append((entity, body, context))
    return found


@each_living
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_damaged_samples_are_accounted_for(provider: Provider, data: st.DataObject) -> None:
    entity, body, context = data.draw(st.sampled_from(small_samples(provider.name)), label="sample")
    times = data.draw(st.integers(1, 4), label="times")
    if isinstance(body, bytes):
        value = orjson.loads(body)
        for _ in range(times):
            value = damage(value, data)
        content = orjson.dumps(value)
    else:
        lines = [re.split(r"([,;\t])", line) for line in body]
        for _ in range(times):
            lines = damage(lines, data)
            if not isinstance(lines, list):
                break
        content = (
            "\n".join(_line(line) for line in lines if line is not None).encode()
            if isinstance(lines, list)
            else str(lines).encode()
        )
    parse(provider, entity, content, context)


def _line(line: Any) -> str:
    return "".join(map(str, line)) if isinstance(line, list) else str(line)
