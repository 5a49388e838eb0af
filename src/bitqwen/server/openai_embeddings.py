"""OpenAI's ``/v1/embeddings``: the last layer's states, pooled and brought to length 1."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.server.generating import note
from bitqwen.server.openai_responses import EmbeddingList
from bitqwen.server.openai_schemas import EmbeddingRequest, one_or_several
from bitqwen.server.operations import takes
from bitqwen.server.served_model import ServedModel, in_thread
from bitqwen.server.service import model_of
from bitqwen.server.streams import while_connected


@takes(EmbeddingRequest, "Makes a vector of each text.", returns=EmbeddingList)
async def create(request: Request, body: EmbeddingRequest) -> Response:
    """``POST /v1/embeddings``."""
    served = await model_of(request, body.model)
    texts = await in_thread(_ids, body, served)

    async def all_of_them() -> list[npt.NDArray[np.float32]]:
        return [await embed(served, ids, body.pooling) for ids in texts]

    vectors = await while_connected(request, all_of_them())
    tokens = sum(map(len, texts))
    note(request, model=served.name, prompt_tokens=tokens)
    return JSONResponse(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": i,
                    "embedding": vector.tolist()
                    if body.encoding_format == "float"
                    else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
                }
                for i, vector in enumerate(vectors)
            ],
            "model": served.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _ids(body: EmbeddingRequest, served: ServedModel) -> list[list[int]]:
    return [served.language_model.encode_prompt(one) for one in one_or_several(body.input)]


async def embed(
    served: ServedModel, ids: Sequence[int], pooling: Literal["mean", "last"]
) -> npt.NDArray[np.float32]:
    """A text's vector: float32 [hidden_size], of length 1.

    Raises:
        ContextLengthError: the text is longer than the context.
        ApiError: the server is busy.
    """
    total = np.zeros(served.language_model.model.config.hidden_size, dtype=np.float64)

    def take(start: int, rows: npt.NDArray[np.float32]) -> None:
        if pooling == "mean":
            np.add(total, rows.sum(axis=0, dtype=np.float64), out=total)
        elif start + len(rows) == len(ids):
            np.add(total, rows[-1], out=total)

    await served.scheduler.read(ids, take, hidden=True)
    length = np.linalg.norm(total)
    return (total / length if length > 0 else total).astype(np.float32)


def routes() -> list[Route]:
    """The routes of this module."""
    return [Route("/v1/embeddings", create, methods=["POST"])]
