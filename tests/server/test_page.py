from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import LiveServer
from scripted import ScriptedScheduler

from bitqwen.errors import ResourceError
from bitqwen.generation.language_model import LanguageModel

ANSWER = (
    "It is **simple**:\n\n1. take `x`\n2. add 1\n\n"
    "```python\nx = 1\nif x < 2:\n    print('<b>hi</b>')\n```\n\n"
    "<script>document.title = 'taken'</script> 日本 🚀"
)


@pytest.fixture(scope="module")
def model(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    return load_tiny(threads=1)


@pytest.fixture(scope="module")
def script(model: LanguageModel) -> ScriptedScheduler:
    return ScriptedScheduler(model)


@pytest.fixture(scope="module")
def server(model: LanguageModel, script: ScriptedScheduler) -> Iterator[LiveServer]:
    with LiveServer(model, script) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (extra: browser)"
    )
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, server: LiveServer, script: ScriptedScheduler) -> Iterator[Callable[..., Any]]:
    """``open_page(url=None, **context)``: the page, whose every complaint fails the test."""
    script.answers, script.requests, script.error, script.pause = [], [], None, 0.0
    contexts, complaints = [], []

    def open_(url: str | None = None, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.goto(url or server.url)
        until(
            page,
            "document.getElementById('model').options.length > 0 || !document.getElementById('error').hidden",
        )
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [text for text in complaints if "401" not in text and "503" not in text] == []


def until(page: Any, condition: str) -> None:
    """Waits for a condition; playwright's own way needs eval in the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def wait_for_answers(page: Any, count: int) -> None:
    until(
        page,
        f"document.querySelectorAll('article.assistant:not(.busy)').length === {count}"
        " && document.getElementById('stop').hidden",
    )


class TestHeaders:
    def test_the_page_needs_nothing_from_elsewhere_and_may_load_nothing(self, server: LiveServer) -> None:
        response = httpx.get(server.url)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "connect-src 'self'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", response.text)
        assert "/*style*/" not in response.text
        assert "/*script*/" not in response.text

    def test_it_can_be_switched_off(self, model: LanguageModel) -> None:
        with LiveServer(model, ScriptedScheduler(model), ui=False) as server:
            assert httpx.get(server.url).status_code == 404
            assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_conversation(
    open_page: Callable[..., Any], script: ScriptedScheduler, model: LanguageModel
) -> None:
    script.answers = [ANSWER, "Second."]
    page = open_page()
    ask(page, "How?")
    wait_for_answers(page, 1)
    answer = page.locator("article.assistant .text")
    assert answer.locator("strong").inner_text() == "simple"
    assert answer.locator("ol li").all_inner_texts() == ["take x", "add 1"]
    assert answer.locator("pre code").inner_text() == "x = 1\nif x < 2:\n    print('<b>hi</b>')"
    assert "<script>document.title = 'taken'</script> 日本 🚀" in answer.inner_text()
    assert page.title() == "bitqwen"
    tokens = len(model.tokenizer.encode(ANSWER))
    assert f"{tokens} tokens" in page.locator("article.assistant .foot").inner_text()
    assert "tokens/s" in page.locator("article.assistant .foot").inner_text()
    assert page.evaluate("document.activeElement.id") == "prompt"
    ask(page, "And then?")
    wait_for_answers(page, 2)
    prompt = model.tokenizer.decode(script.requests[1].prompt)
    assert [prompt.index(text) for text in ("How?", "It is **simple**", "And then?")] == sorted(
        prompt.index(text) for text in ("How?", "It is **simple**", "And then?")
    )


def test_settings_reach_the_server_and_stay(
    open_page: Callable[..., Any], script: ScriptedScheduler, model: LanguageModel
) -> None:
    script.answers = ["ok", "ok"]
    page = open_page()
    page.locator("summary").click()
    page.get_by_label("System prompt").fill("Be brief.")
    for label, value in {
        "Temperature": "0.25",
        "Top-p": "0.5",
        "Top-k": "7",
        "Min-p": "0.1",
        "Repetition penalty": "1.2",
        "Longest answer, tokens": "9",
        "Seed": "3",
    }.items():
        page.get_by_label(label).fill(value)
    ask(page, "Hi")
    wait_for_answers(page, 1)
    page.reload()
    ask(page, "Hi")
    wait_for_answers(page, 1)
    assert len(script.requests) == 2
    for request in script.requests:
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.25, 0.5, 7, 0.1)
        assert (sampling.repetition_penalty, sampling.seed, request.max_tokens) == (1.2, 3, 9)
        assert "Be brief." in model.tokenizer.decode(request.prompt)
    page.locator("summary").click()
    page.get_by_role("button", name="Reset").click()
    page.reload()
    assert page.locator("#temperature").input_value() == ""


def test_a_setting_out_of_range_is_not_sent(open_page: Callable[..., Any], script: ScriptedScheduler) -> None:
    page = open_page()
    page.locator("summary").click()
    page.get_by_label("Top-p").fill("3")
    ask(page, "Hi")
    assert page.locator("article").count() == 0
    assert script.requests == []


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stopping_keeps_what_was_written(
    open_page: Callable[..., Any], script: ScriptedScheduler, way: str
) -> None:
    script.answers = ["word " * 200]
    script.pause = 0.02
    before = script.cancelled
    page = open_page()
    ask(page, "Talk")
    until(page, "(document.querySelector('article.assistant .text')?.innerText ?? '').length > 20")
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    wait_for_answers(page, 1)
    assert "stopped" in page.locator("article.assistant .foot").inner_text()
    assert 20 < len(page.locator("article.assistant .text").inner_text()) < 900
    page.wait_for_timeout(200)
    assert script.cancelled == before + 1


def test_copying_and_trying_again(open_page: Callable[..., Any], script: ScriptedScheduler) -> None:
    script.answers = [ANSWER, "Another."]
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    ask(page, "How?")
    wait_for_answers(page, 1)
    page.get_by_role("button", name="Copy the answer").click()
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER
    page.get_by_role("button", name="Copy the code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1\nif x < 2:\n    print('<b>hi</b>')"
    page.get_by_role("button", name="Try again").click()
    until(page, "document.querySelector('article.assistant .text')?.innerText === 'Another.'")
    assert page.locator("article").count() == 2
    assert script.requests[0].prompt == script.requests[1].prompt
    page.get_by_role("button", name="New chat").click()
    assert page.locator("article").count() == 0


def test_an_error_is_shown_and_the_question_kept(
    open_page: Callable[..., Any], script: ScriptedScheduler
) -> None:
    script.answers = ["x"]
    script.error = ResourceError("no more memory")
    page = open_page()
    page.evaluate(
        "window.fetch = () => Promise.resolve(Response.json({error: {message: 'too busy'}}, {status: 503}))"
    )
    ask(page, "Hi there")
    page.get_by_role("alert").filter(has_text="too busy").wait_for()
    assert page.get_by_label("Message").input_value() == "Hi there"
    assert page.locator("article").count() == 0


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page: Callable[..., Any], model: LanguageModel) -> None:
    with LiveServer(model, ScriptedScheduler(model, ["Hello."]), api_keys=["secret"]) as server:
        page = open_page(server.url)
        page.get_by_role("alert").filter(has_text="API key").wait_for()
        page.locator("summary").click()
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Tab")
        until(page, "document.getElementById('model').options.length > 0")
        ask(page, "Hi")
        wait_for_answers(page, 1)
        assert page.locator("article.assistant .text").inner_text() == "Hello."
        assert page.evaluate("JSON.stringify(localStorage)").find("secret") < 0


class TestAccess:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [320, 1200])
    def test_layout_and_contrast(
        self,
        open_page: Callable[..., Any],
        script: ScriptedScheduler,
        scheme: str,
        width: int,
        tmp_path: Path,
    ) -> None:
        script.answers = [ANSWER + "x" * 80]
        page = open_page(viewport={"width": width, "height": 640}, color_scheme=scheme)
        page.locator("summary").click()
        hint, field = page.locator("#empty").bounding_box(), page.get_by_label("Message").bounding_box()
        assert hint["y"] + hint["height"] <= field["y"]
        page.locator("summary").click()
        ask(page, "How?")
        wait_for_answers(page, 1)
        page.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for label in ("Message", "Temperature", "System prompt", "Model"):
            page.get_by_label(label).scroll_into_view_if_needed()
            assert page.get_by_label(label).is_visible()
        send = page.get_by_role("button", name="Send").bounding_box()
        assert send["y"] + send["height"] <= 640
        assert send["height"] >= 44
        assert page.evaluate(CONTRAST) >= 4.5

    def test_the_keyboard_reaches_everything(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        reached = []
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert {"A", "model", "new", "SUMMARY", "prompt", "send"} <= set(reached)

    def test_names_and_announcements(self, open_page: Callable[..., Any], script: ScriptedScheduler) -> None:
        script.answers = ["Done."]
        page = open_page()
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, input, select, textarea')].filter((e) =>"
            " !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.id)"
        )
        assert nameless == []
        ask(page, "Hi")
        wait_for_answers(page, 1)
        assert page.get_by_role("status").inner_text() == "Answer: Done."
        assert page.get_by_role("main").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"


# The lowest contrast of any text to the nearest background behind it (WCAG 2.2's formula).
CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratios = [...document.querySelectorAll('body *')].filter((e) => e.offsetParent &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    });
  return Math.min(...ratios);
}
"""
