"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
  const SAVED = [...NUMBERS, "system", "model"];
  let conversation = [];  // what the server is sent
  let running = null;     // AbortController of the answer being written

  // -- settings ---------------------------------------------------------------------------------------------

  // A browser may forbid storage; the page works without.
  const remember = (store, name, value) => { try { store().setItem(`bitqwen.${name}`, value); } catch { /* forbidden */ } };
  const recall = (store, name) => { try { return store().getItem(`bitqwen.${name}`) ?? ""; } catch { return ""; } };
  const local = () => localStorage;
  const session = () => sessionStorage;

  function headers() {
    const key = $("key").value.trim();
    return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  }

  async function listModels() {
    try {
      const response = await fetch("v1/models", { headers: headers() });
      if (!response.ok) throw new Error(await reason(response));
      const names = (await response.json()).data.map((model) => model.id);
      $("model").replaceChildren(...names.map((name) => new Option(name, name)));
      const wanted = recall(local, "model");
      if (names.includes(wanted)) $("model").value = wanted;
      hideError();
    } catch (error) {
      showError(error.message);
    }
  }

  function request() {
    const body = { model: $("model").value, stream: true, stream_options: { include_usage: true } };
    const system = $("system").value.trim();
    body.messages = [...(system ? [{ role: "system", content: system }] : []), ...conversation];
    for (const name of NUMBERS) {
      if ($(name).value !== "") body[name] = Number($(name).value);
    }
    return body;
  }

  // -- the conversation -------------------------------------------------------------------------------------

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function addMessage(role, text) {
    $("empty").hidden = true;
    const body = element("div", { className: "text" });
    const foot = element("div", { className: "foot" });
    const message = element("article", { className: role },
      element("h2", { textContent: role === "user" ? "You" : "Answer" }), body, foot);
    if (role === "user") body.textContent = text;
    $("chat").append(message);
    return { message, body, foot };
  }

  function copyButton(label, text) {
    const button = element("button", { type: "button", textContent: "Copy", ariaLabel: label });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text());
        button.textContent = "Copied";
        announce("Copied");
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return button;
  }

  // The part of Markdown that models write most; built as elements, so that no answer can become markup.
  function render(text, into) {
    const blocks = [];
    let list = null;
    let paragraph = [];
    const endParagraph = () => {
      const joined = paragraph.join("\n").trim();
      if (joined) blocks.push(element("p", {}, ...inline(joined)));
      paragraph = [];
    };
    const lines = text.split("\n");
    for (let i = 0; i < lines.length; i++) {
      const line = lines[i];
      const fence = /^\s*(`{3,}|~{3,})\s*([^`]*)$/.exec(line);
      const item = /^\s*(?:([-*+])|(\d+)[.)])\s+(.*)$/.exec(line);
      const heading = /^#{1,6}\s+(.*)$/.exec(line);
      if (fence || item || heading || !line.trim()) endParagraph();
      if (!item) list = null;
      if (fence) {
        const code = [];
        while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) code.push(lines[i]);
        blocks.push(codeBlock(fence[2].trim(), code.join("\n")));
      } else if (heading) {
        blocks.push(element("h3", {}, ...inline(heading[1])));
      } else if (item) {
        const tag = item[2] ? "OL" : "UL";
        if (list?.tagName !== tag) {
          list = element(tag.toLowerCase(), item[2] ? { start: Number(item[2]) } : {});
          blocks.push(list);
        }
        list.append(element("li", {}, ...inline(item[3])));
      } else if (line.trim()) {
        paragraph.push(line);
      }
    }
    endParagraph();
    into.replaceChildren(...blocks);
  }

  function inline(text) {
    return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).filter(Boolean).map((part) => {
      if (/^`[^`]+`$/.test(part)) return element("code", { textContent: part.slice(1, -1) });
      if (/^\*\*[^*]+\*\*$/.test(part)) return element("strong", { textContent: part.slice(2, -2) });
      return part;
    });
  }

  function codeBlock(language, code) {
    return element("div", { className: "code" },
      element("div", { className: "bar" }, element("span", { textContent: language || "code" }),
        copyButton("Copy the code", () => code)),
      element("pre", { tabIndex: 0 }, element("code", { textContent: code })));
  }

  // -- an answer --------------------------------------------------------------------------------------------

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop();
      for (const event of whole) {
        const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        if (data.length && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
      }
    }
  }

  async function reason(response) {
    const text = await response.text();
    try {
      return JSON.parse(text).error.message;
    } catch {
      return `The server answered ${response.status}.`;
    }
  }

  async function answer() {
    hideError();
    const { message, body, foot } = addMessage("assistant", "");
    message.classList.add("busy");
    foot.textContent = "Reading …";
    announce("Answering");
    setBusy(new AbortController());
    let text = "";
    let tokens = 0;
    let usage = null;
    let first = 0;
    let last = 0;
    let ended = "";
    let frame = 0;  // in which the text is drawn next
    const draw = () => {
      frame = 0;
      const below = atBottom();
      render(text, body);
      foot.textContent = speed(tokens, first, last);
      if (below) scrollDown();
    };
    scrollDown();
    try {
      const response = await fetch("v1/chat/completions", {
        method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal,
      });
      if (!response.ok) throw new Error(await reason(response));
      for await (const chunk of events(response)) {
        if (chunk.error) throw new Error(chunk.error.message);
        usage = chunk.usage ?? usage;
        const choice = chunk.choices?.[0];
        if (!choice) continue;
        if (choice.delta?.content) {
          last = performance.now();
          first ||= last;
          tokens += 1;
          text += choice.delta.content;
          frame ||= requestAnimationFrame(draw);
        }
        if (choice.finish_reason === "length") ended = "cut off at the longest answer";
      }
    } catch (error) {
      if (error.name === "AbortError") ended = "stopped";
      else showError(error.message);
    }
    setBusy(null);
    message.classList.remove("busy");
    tokens = usage?.completion_tokens ?? tokens;
    cancelAnimationFrame(frame);
    draw();
    if (text) {
      conversation.push({ role: "assistant", content: text });
      const parts = [speed(tokens, first, last), ended].filter(Boolean).join(" · ");
      foot.replaceChildren(copyButton("Copy the answer", () => text), againButton(message), parts);
      announce(`${ended ? `Answer ${ended}` : "Answer"}: ${text}`);
    } else {
      message.remove();
      const question = conversation.pop();  // it can be sent again
      $("chat").querySelector("article:last-of-type")?.remove();
      if (!$("prompt").value) $("prompt").value = question?.content ?? "";
      $("empty").hidden = conversation.length > 0;
      grow();
      announce(ended || "No answer");
    }
    $("prompt").focus({ preventScroll: true });
  }

  function againButton(message) {
    for (const old of document.querySelectorAll(".again")) old.remove();  // only the last answer has one
    const button = element("button", { type: "button", textContent: "Try again", className: "again" });
    button.addEventListener("click", () => {
      if (running) return;
      conversation.pop();
      message.remove();
      answer();
    });
    return button;
  }

  function speed(tokens, first, last) {
    if (!tokens) return "Reading …";
    const seconds = (last - first) / 1000;
    const rate = tokens > 1 && seconds > 0 ? ` · ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    return `${tokens} token${tokens === 1 ? "" : "s"}${rate}`;
  }

  // -- what the user sees and does --------------------------------------------------------------------------

  const atBottom = () => $("chat").scrollHeight - $("chat").scrollTop - $("chat").clientHeight < 60;
  const scrollDown = () => { $("chat").scrollTop = $("chat").scrollHeight; };
  const announce = (text) => { $("status").textContent = text; };
  const showError = (text) => { $("error").textContent = text; $("error").hidden = false; };
  const hideError = () => { $("error").hidden = true; };

  function setBusy(controller) {
    running = controller;
    $("send").hidden = Boolean(controller);
    $("stop").hidden = !controller;
    $("new").disabled = Boolean(controller);
  }

  function grow() {
    $("prompt").style.height = "auto";
    $("prompt").style.height = `${$("prompt").scrollHeight + 2}px`;
  }

  function submit() {
    const text = $("prompt").value.trim();
    if (!text || running) return;
    if (!$("fields").reportValidity()) {
      $("settings").open = true;
      return;
    }
    conversation.push({ role: "user", content: text });
    addMessage("user", text);
    $("prompt").value = "";
    grow();
    answer();
  }

  $("compose").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("prompt").addEventListener("input", grow);
  $("prompt").addEventListener("keydown", (event) => {
    // isComposing: Enter then ends the input of a character, as in Chinese and Japanese.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
  $("stop").addEventListener("click", () => running?.abort());
  $("new").addEventListener("click", () => {
    conversation = [];
    for (const message of [...$("chat").querySelectorAll("article")]) message.remove();
    $("empty").hidden = false;
    hideError();
    announce("New chat");
    $("prompt").focus();
  });
  for (const name of SAVED) {
    $(name).value = name === "model" ? "" : recall(local, name);
    $(name).addEventListener("change", () => remember(local, name, $(name).value));
  }
  $("key").value = recall(session, "key");
  $("key").addEventListener("change", () => { remember(session, "key", $("key").value); listModels(); });
  $("fields").addEventListener("submit", (event) => event.preventDefault());
  $("fields").addEventListener("reset", () => {
    for (const name of SAVED) if (name !== "model") remember(local, name, "");
    remember(session, "key", "");
  });
  listModels();
  $("prompt").focus();
})();
