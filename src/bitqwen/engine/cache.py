"""Number formats of the KV cache.

| name | keys | values | bytes a position and key/value head of 128 |
|---|---|---|---|
| f16 | float16 | float16 | 512 |
| q8 | 8 bits, the bias kept apart, a scale every 64 | 8 bits, a scale every 64 | 280 |
| q4 | as in q8 | 4 bits, a scale every 32 | 216 |

Qwen2.5's key biases are many times what varies between keys, so a key is stored less its rotated bias, and
attention adds the product with that back: keys would not bear four bits, values do. "int8" is q8's
earlier name.
"""

from __future__ import annotations

from typing import Literal

KvType = Literal["f16", "q8", "q4", "int8"]
