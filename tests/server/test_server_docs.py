"""What docs/server.md and the examples say exists."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_the_curl_command_as_it_stands(start_app):
    page = PAGE.read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("curl "))
    client = start_app(alias=["qwen"], max_tokens=3)
    command = command.replace("http://127.0.0.1:8080", client.live.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant", done


def test_the_dashboard_shows_metrics_that_exist(start_app):
    client = start_app()
    body = {"model": "tiny", "prompt": "the fox", "max_tokens": 2}
    assert client.post("/v1/completions", body).status_code == 200
    served = set(re.findall(r"^# TYPE (\w+)", client.get("/metrics").text, re.MULTILINE))
    dashboard = json.loads((ROOT / "examples" / "server" / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in dashboard["templating"]["list"][1:]]
    named = {name for text in asked for name in re.findall(r"bitqwen_\w+", text)}
    assert len(named) > 10
    for name in named:
        assert re.sub(r"_(bucket|sum|count)$", "", name) in served or name in served, name


def test_the_recipes_of_clients_lead_to_the_server(start_app):
    yaml = pytest.importorskip("yaml")
    clients = ROOT / "examples" / "clients"
    read = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in clients.iterdir()}
    addresses = {
        read["continue.yaml"]["models"][0]["apiBase"],
        read["aider.conf.yml"]["openai-api-base"],
        read["llm.yaml"][0]["api_base"],
    }
    (address,) = addresses
    assert read["aider.conf.yml"]["model"].removeprefix("openai/") == read["llm.yaml"][0]["model_name"]
    client = start_app(alias=["coder"], max_tokens=3)
    url = address.replace("http://127.0.0.1:8080", client.live.url)
    body = {
        "model": read["continue.yaml"]["models"][0]["model"],
        "messages": [{"role": "user", "content": "Hi"}],
    }
    assert client.post(f"{url}/chat/completions", body).status_code == 200
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["open-webui"]["environment"]["OPENAI_API_BASE_URL"] == "http://bitqwen:8080/v1"


def test_the_example_settings_are_settings():
    settings = read(ROOT / "examples" / "server" / "server.toml", {})
    assert settings.cache_positions == 65536


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_the_systemd_unit_is_one(tmp_path):
    text = (ROOT / "examples" / "server" / "bitqwen.service").read_text(encoding="utf-8")
    program = re.search(r"^ExecStart=(\S+) serve (.+)$", text, re.MULTILINE)
    assert program is not None
    unit = tmp_path / "bitqwen.service"
    unit.write_text(text.replace(program[1], "/bin/true"), encoding="utf-8")  # a program that is there
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "bitqwen.service" not in done.stderr  # where it says what it passed over
    flags = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"`{flag}`" in flags for flag in re.findall(r"--[a-z-]+", program[2]))
