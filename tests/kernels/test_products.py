from __future__ import annotations

import pytest

from bitqwen.convert import convert
from bitqwen.errors import UsageError
from bitqwen.gguf import GGUFFile
from bitqwen.kernels import preset, products
from bitqwen.models.qwen2 import Qwen2Config


def test_what_one_loop_multiplies_is_one_product():
    found = {product.key: product for product in products.of_config(preset("7B"), "w2")}
    assert {key: (product.names, product.count) for key, product in found.items()} == {
        ("Q2_0", 3584 + 2 * 512, 3584): (("attn_q", "attn_k", "attn_v"), 28),
        ("Q2_0", 3584, 3584): (("attn_output",), 28),
        ("Q2_0", 2 * 18944, 3584): (("ffn_gate", "ffn_up"), 28),
        ("Q2_0", 3584, 18944): (("ffn_down",), 28),
        ("Q6_K", 152064, 3584): (("output",), 1),
    }
    assert found["Q2_0", 3584 + 2 * 512, 3584].granule == 512


def test_a_tied_head_is_the_embedding():
    assert products.of_config(preset("1.5B"), "w4")[-1].names == ("token_embd",)


@pytest.mark.parametrize("scheme", ["w4", "ternary", "f16"])
def test_a_file_has_the_products_of_its_configuration(tiny_checkpoint, tmp_path, scheme):
    made = tiny_checkpoint(tied=False)
    path = convert(made.folder, tmp_path / "out.gguf", scheme).path
    file = GGUFFile(path)
    config = Qwen2Config.from_gguf(file.metadata, file.tensors)
    assert products.of_file(file) == products.of_config(config, scheme)


def test_an_unknown_scheme():
    with pytest.raises(UsageError, match="'w9'"):
        products.of_config(preset("7B"), "w9")
