"""Vendors' own API descriptions (OpenAPI 3.x, Swagger 2.0), to hold the sandbox's answers against."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from sandbox_client import shared_folder


def load_spec(name: str) -> dict[str, Any]:
    """The description in a file of this name (`whoop.yaml`); skips the test where it is not at hand."""
    path = shared_folder() / "providers" / "specs" / name
    if not path.exists():
        pytest.skip(f"the vendor's description is not here: {path}")
    text = path.read_text(encoding="utf-8")
    spec: dict[str, Any] = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    return spec


def response_schema(spec: dict[str, Any], path: str, method: str, status: int) -> dict[str, Any]:
    """The JSON schema of an answer, its references still open."""
    responses = spec["paths"][path][method.lower()]["responses"]
    found = responses.get(str(status)) or responses.get(status) or responses["default"]
    if "$ref" in found:
        found = _follow(spec, found["$ref"])
    schema: dict[str, Any]
    if "content" in found:
        media = next(kind for kind in found["content"] if "json" in kind or kind == "*/*")
        schema = found["content"][media]["schema"]
    else:
        schema = found["schema"]
    return schema


def assert_response_fits(spec: dict[str, Any], path: str, method: str, status: int, body: Any) -> None:
    """`path` is the template as the description writes it, for instance `/v2/activity/sleep/{sleepId}`."""
    problems = problems_of(spec, response_schema(spec, path, method, status), body)
    assert not problems, f"{method} {path} {status}: {problems[:8]}"


def problems_of(spec: dict[str, Any], schema: dict[str, Any], body: Any) -> list[str]:
    """What does not fit, as `path: message`."""
    document = {key: spec[key] for key in ("components", "definitions") if key in spec}
    whole = _as_json_schema({**document, "allOf": [schema]})
    validator = jsonschema.Draft202012Validator(whole)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]


def _follow(spec: dict[str, Any], reference: str) -> Any:
    part: Any = spec
    for name in reference.removeprefix("#/").split("/"):
        part = part[name.replace("~1", "/").replace("~0", "~")]
    return part


def _as_json_schema(part: Any) -> Any:
    """OpenAPI 3.0's and Swagger's `nullable` as a JSON schema says it; other keywords are the same."""
    if isinstance(part, list):
        return [_as_json_schema(each) for each in part]
    if not isinstance(part, dict):
        return part
    schema = {
        name: _as_json_schema(value) for name, value in part.items() if name not in ("example", "examples")
    }
    if schema.pop("nullable", False) is True or schema.pop("x-nullable", False) is True:
        return {"anyOf": [schema, {"type": "null"}]}
    # Older drafts' flags; the newer ones are numbers.
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(name), bool):
            del schema[name]
    return schema
