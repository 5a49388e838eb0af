"""bitqwen as a model of lm-evaluation-harness (``pip install 'bitqwen[lm-eval]'``).

From the command line, with the harness's own options:

    python -m bitqwen.measure.lm_eval --model bitqwen --model_args pretrained=qwen.gguf,kv=q8 --tasks gsm8k

and from Python:

    lm_eval.simple_evaluate(model=BitqwenLM("qwen.gguf"), tasks=["gsm8k"])

Text is tokenised as the harness does it for Hugging Face models: names of control tokens in it are control
tokens, which the chat template needs. Requests that begin alike, such as a question's choices or few-shot
examples, are computed in an order that shares what they have in common.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bitqwen.engine import Model
from bitqwen.engine.cache import KvType
from bitqwen.errors import UsageError
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.loading import gguf_path
from bitqwen.generation.tokenizer import Tokenizer

from .distributions import negative_log_likelihood
from .passages import SLICE_ROWS
from .tasks import batching

DEFAULT_CONTEXT = 2048
DEFAULT_MAX_TOKENS = 256
DEFAULT_SEQUENCES = 8


@register_model("bitqwen")
class BitqwenLM(TemplateLM):
    """A GGUF file, or any source that ``bitqwen run`` takes, as the harness's model.

    Args:
        pretrained: the model.
        threads: threads that compute; one a core by default.
        context: tokens of the longest request; what is longer loses its beginning.
        kv: number format of the KV cache.
        max_gen_toks: the most that is generated where a task does not say.
        sequences: answers under way at once.
        **_: what the harness gives every model, such as a device.

    Raises:
        ModelFileError, CheckpointError, UnsupportedModelError: the model cannot be read or run.
        ResourceError: it needs more memory than there is.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        kv: KvType = "f16",
        max_gen_toks: int = DEFAULT_MAX_TOKENS,
        sequences: int = DEFAULT_SEQUENCES,
        **_: Any,
    ) -> None:
        super().__init__()
        path = gguf_path(str(pretrained))
        self._path = Path(path)
        self._sequences = sequences
        self._max_tokens = max_gen_toks
        length = DEFAULT_CONTEXT if context is None else context
        # A page of the cache may be begun by each sequence.
        self._model = Model.open(
            path,
            threads=threads,
            context=length,
            cache_positions=sequences * (length + 64),
            kv=kv,
            exact_head=True,
        )
        metadata = self._model.metadata
        # Not `tokenizer`: the harness would ask that for what Hugging Face's tokenizers do.
        self._tokens = Tokenizer.from_gguf(metadata)
        self._template = metadata.get("tokenizer.chat_template")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; also what an empty context is replaced by."""
        token = self._tokens.eos_id
        return 0 if token is None else token

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps chat requests under."""
        return self._path.stem

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's chat template, where the harness wants one applied."""
        return None if chat_template is False else (self._template or "")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text.

        Raises:
            UsageError, ModelFileError: the chat template refuses the messages, or does not work.
        """
        tokens = self._tokens
        ids = {"bos_token": tokens.bos_id, "eos_token": tokens.eos_id, "pad_token": tokens.pad_id}
        special = {name: tokens.decode([token]) for name, token in ids.items() if token is not None}
        template = ChatTemplate(self._template, special_tokens=special)
        return template.render(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, with a bos token where the model's texts begin with one."""
        tokens = self._tokens
        ids = tokens.encode(string, allow_special=True)
        if add_special_tokens is not False and tokens.add_bos and tokens.bos_id is not None:
            return ids if ids[:1] == [tokens.bos_id] else [tokens.bos_id, *ids]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        wholes = []
        for _texts, context, continuation in requests:
            whole = (context + continuation)[-(self._model.context + 1) :]
            wholes.append((whole, min(len(continuation), len(whole) - 1)))
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(wholes)
        with self._model.session() as session:
            # In this order, what two requests share at their beginning is computed once.
            for place in sorted(range(len(wholes)), key=lambda i: wholes[i][0]):
                whole, scored = wholes[place]
                first = len(whole) - scored - 1
                shared = min(_shared(session.tokens, whole), first)
                session.truncate(shared)
                if shared < first:
                    session.feed(whole[shared:first], logits="none")
                total, greedy = 0.0, True
                for begin in range(first, len(whole) - 1, SLICE_ROWS):
                    end = min(begin + SLICE_ROWS, len(whole) - 1)
                    logits = session.feed(whole[begin:end], logits="all")
                    assert logits is not None
                    rows = logits[:, : self._tokens.vocab_size]
                    for row, target in zip(rows, whole[begin + 1 : end + 1], strict=True):
                        total -= negative_log_likelihood(row, target)
                        greedy &= int(row.argmax()) == target
                answers[place] = (total, greedy)
        for (texts, _context, _continuation), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context that do not overlap."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self._tokens.encode(request.args[0], allow_special=True),
                self.prefix_token_id,
                self._model.context,
                1,
            ):
                context, predicted = make_disjoint_window(window)
                windows.append((None, context, predicted))
                owners.append(place)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, several at once.

        Raises:
            UsageError: a task wants its answers sampled.
        """
        answers = [""] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(place)
        for (most, stop), places in groups.items():
            room = self._model.context - most
            if room < 1:
                raise UsageError(
                    f"The task generates {most} tokens; the context holds {self._model.context}.",
                    hint="Give a larger one: --model_args pretrained=...,context=N",
                )
            found = batching.generate(
                self._model,
                self._tokens,
                [self.tok_encode(requests[place].args[0])[-room:] for place in places],
                max_tokens=most,
                stop=stop,
                sequences=self._sequences,
            )
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer.text
                self.cache_hook.add_partial("generate_until", requests[place].args, answer.text)
        return answers

    def _settings(self, given: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        if given.get("do_sample") or float(given.get("temperature") or 0.0) > 0:
            raise UsageError(
                "The task wants its answers sampled; here they are the likeliest ones.",
                hint="Add --gen_kwargs do_sample=false,temperature=0",
            )
        until = given.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        most = given.get("max_gen_toks") or given.get("max_new_tokens") or given.get("max_tokens")
        return int(most or self._max_tokens), tuple(text for text in until if text)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    most = min(len(first), len(second))
    return next((i for i in range(most) if first[i] != second[i]), most)


def main() -> None:
    """The harness's own command line, which knows ``--model bitqwen`` then."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
