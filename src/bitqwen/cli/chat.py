"""``bitqwen chat``: a conversation in the terminal."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from bitqwen.cli import options, terminal
from bitqwen.errors import BitqwenError, Interrupted, UsageError

if TYPE_CHECKING:
    from bitqwen.generation.language_model import LanguageModel


def chat(
    model: options.Model,
    system: options.System = None,
    threads: options.Threads = None,
    context: options.Context = None,
    kv: options.KvType = "f16",
    no_tuning: options.NoTuning = False,
    exact_head: options.ExactHead = False,
    numa: options.Numa = False,
    max_tokens: options.MaxTokens = options.DEFAULT_MAX_TOKENS,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer, /help lists the commands, Ctrl-D leaves. A line that ends in a backslash goes
    on in the next; three double quotes begin and end a message of several lines.
    """
    settings = options.given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    settings["max_tokens"] = options.max_tokens(max_tokens)
    language_model = options.load(
        model, threads=threads, context=context, kv=kv, exact_head=exact_head, numa=numa, quiet=quiet
    )
    terminal.say(f"{model}: /help lists the commands, Ctrl-D leaves.", quiet=quiet)
    Terminal(language_model, system, settings, quiet=quiet).loop()


class Terminal:
    """Reads messages and prints answers until the user leaves.

    Args:
        model: answers.
        system: the system prompt; None leaves it to the model's chat template.
        settings: how answers are made at first; /set changes them.
        quiet: print the answers and nothing else.
    """

    def __init__(
        self, model: LanguageModel, system: str | None, settings: dict[str, Any], *, quiet: bool = False
    ) -> None:
        from bitqwen.cli.chat_commands import Commands
        from bitqwen.cli.conversation import Conversation

        self._model = model
        self._chat = model.chat(system)
        self._conversation = Conversation(self._chat.messages, settings)
        self._commands = Commands(self._conversation, statistics=self._statistics, say=terminal.say)
        self._quiet = quiet

    def loop(self) -> None:
        """Talks until the end of the input or /exit."""
        from bitqwen.checkpoints.cache import cache_dir
        from bitqwen.cli.line_input import LineInput

        lines = LineInput(cache_dir() / "chat_history")
        try:
            while True:
                try:
                    line = lines.read()
                    if line is None or not self._take(line):
                        return
                except KeyboardInterrupt:
                    terminal.say("\n/exit or Ctrl-D leaves.", quiet=self._quiet)
                except BitqwenError as error:
                    terminal.report(error, debug=options.debug_enabled())
        finally:
            lines.close()

    def _take(self, line: str) -> bool:
        """Handles one message or command; False to leave."""
        from bitqwen.cli.chat_commands import parse

        if not line.startswith("/"):
            if line.strip():
                self._answer(line)
            return True
        name, argument = parse(line)
        if name == "/exit":
            return False
        if name == "/retry":
            question = self._conversation.take_back()
            if question is None:
                raise UsageError("There is no question yet.")
            self._answer(question)
        else:
            self._commands.run(name, argument)
        return True

    def _answer(self, question: str) -> None:
        """Streams an answer; what came before Ctrl-C counts as said.

        Raises:
            BitqwenError: no answer came about, and the question is forgotten.
        """
        stopped = False
        before = len(self._conversation.messages)
        try:
            with closing(self._chat.stream(question, **self._conversation.settings)) as pieces:
                for piece in pieces:
                    terminal.write(piece)
        except (KeyboardInterrupt, Interrupted):
            stopped = True
        terminal.write("\n")
        stream = self._chat.last
        if stream is None or len(self._conversation.messages) == before:  # stopped before it began
            return
        if not stream.text:
            self._conversation.take_back()
        ending = ", stopped" if stopped else ", cut off" if stream.finish_reason == "length" else ""
        speed = stream.timings.decode_tokens_per_second
        terminal.say(f"[{len(stream.tokens)} tokens, {speed:.1f} tokens/s{ending}]", quiet=self._quiet)

    def _statistics(self) -> str:
        memory = self._model.model.memory
        lines = [
            f"memory: weights {terminal.size(memory['weights'])}, KV cache {terminal.size(memory['cache'])}, "
            f"scratch {terminal.size(memory['scratch'])}"
        ]
        if self._chat.last is not None:
            timings = self._chat.last.timings
            used = timings.prompt_tokens + timings.generated_tokens
            lines += [
                f"context: {used} of {self._model.context} tokens",
                f"last prompt: {timings.prompt_tokens} tokens, {timings.cached_tokens} of them cached, the "
                f"others at {timings.prefill_tokens_per_second:.1f} tokens/s",
                f"last answer: {timings.generated_tokens} tokens at "
                f"{timings.decode_tokens_per_second:.1f} tokens/s",
            ]
        return "\n".join(lines)
