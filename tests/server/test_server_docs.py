"""What docs/server.md and the examples say exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from bitqwen.server.settings import ServerSettings, read

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "server.md"


def test_the_example_request_is_answered(start_app):
    page = PAGE.read_text(encoding="utf-8")
    command = shlex.split(next(line for line in page.splitlines() if line.startswith("curl ")))
    url, body = command[1], json.loads(command[command.index("-d") + 1])
    client = start_app(alias=[body["model"]])
    # curl -d says that the body is a form, which it is not.
    answer = client.http.post(
        url.partition(":8080")[2],
        content=json.dumps(body | {"max_tokens": 3}),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 200, answer.text


def test_every_path_on_the_page_is_one(start_app):
    paths = set(start_app().get("/openapi.json").json()["paths"]) | {"/openapi.json"}
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {path for line in table for path in re.findall(r"`(?:GET |POST )?(/[\w/.-]+)`", line)}
    assert len(named) > 10
    assert named <= paths


def test_every_setting_without_a_flag_is_one():
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", page[page.index("Those without a flag") :].partition("\n\n")[0])
    assert set(listed) <= set(ServerSettings.model_fields)
    assert len(listed) == 6


def test_the_example_settings_are_settings():
    settings = read(ROOT / "examples" / "server" / "server.toml", {})
    assert settings.cache_positions == 65536
