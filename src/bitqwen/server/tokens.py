"""Text to tokens and back, and what the chat template makes of messages; under llama-server's names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.server.errors import invalid
from bitqwen.server.openai_schemas import Message, Tool
from bitqwen.server.operations import takes
from bitqwen.server.schemas import Strict, TokenId
from bitqwen.server.served_model import ServedModel, in_thread
from bitqwen.server.service import model_of, service_of


class OfModel(Strict):
    """A body that may name the model; one need not where there is only one."""

    model: str | None = None

    async def served(self, request: Request) -> ServedModel:
        """The model that is meant."""
        if self.model is not None:
            return await model_of(request, self.model)
        offers = service_of(request).offers()
        if len(offers) > 1:
            names = ", ".join(offer.name for offer in offers)
            raise invalid(f"model is missing; there are several: {names:.1000}.", "model")
        return await model_of(request, offers[0].name if offers else "")


class TokenizeRequest(OfModel):
    """Body of ``POST /tokenize``."""

    content: str
    add_special: bool = Field(False, description="Begin with the token that begins a text, if there is one.")
    parse_special: bool = Field(False, description="Read control tokens' names as control tokens.")
    with_pieces: bool = Field(False, description="Tell each token's text, or its bytes if they are no text.")


class Tokens(BaseModel):
    """The tokens of a text."""

    tokens: list[int] | list[dict[str, Any]]


class DetokenizeRequest(OfModel):
    """Body of ``POST /detokenize``."""

    tokens: list[TokenId]


class Text(BaseModel):
    """The text of tokens."""

    content: str


class TemplateRequest(OfModel):
    """Body of ``POST /apply-template``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True


class Prompt(BaseModel):
    """What the model would read."""

    prompt: str


@takes(TokenizeRequest, "Cuts a text into tokens.", returns=Tokens)
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """``POST /tokenize``."""
    tokenizer = (await body.served(request)).language_model.tokenizer
    ids = await in_thread(tokenizer.encode, body.content, allow_special=body.parse_special)
    if body.add_special and tokenizer.add_bos and tokenizer.bos_id is not None:
        ids.insert(0, tokenizer.bos_id)
    if not body.with_pieces:
        return JSONResponse({"tokens": ids})
    return JSONResponse(
        {"tokens": [{"id": token, "piece": _piece(tokenizer.token_bytes(token))} for token in ids]}
    )


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


@takes(DetokenizeRequest, "Joins tokens to a text.", returns=Text)
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """``POST /detokenize``."""
    tokenizer = (await body.served(request)).language_model.tokenizer
    return JSONResponse({"content": await in_thread(tokenizer.decode, body.tokens)})


@takes(TemplateRequest, "Shows the prompt that a conversation becomes.", returns=Prompt)
async def apply_template(request: Request, body: TemplateRequest) -> Response:
    """``POST /apply-template``."""
    template = (await body.served(request)).language_model.template
    prompt = await in_thread(
        template.render,
        [message.model_dump(exclude_none=True) for message in body.messages],
        None if body.tools is None else [tool.model_dump(exclude_none=True) for tool in body.tools],
        body.add_generation_prompt,
    )
    return JSONResponse({"prompt": prompt})


def routes() -> list[Route]:
    """The routes of this module."""
    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
    ]
