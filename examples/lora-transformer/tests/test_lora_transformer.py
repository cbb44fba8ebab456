"""Only adapters are trained and sent, and they learn; the base is that of a file."""

import numpy as np
import pytest
import torch
from lora_transformer import LoraTransformer
from safetensors.torch import save_file
from transformer import Transformer

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings
from fedsim.testing.conformance import Candidate, checks

SMALL = {"width": 16, "heads": 2, "layers": 1, "rank": 2}
LENGTH, SYMBOLS = 8, 5
ADAPTERS = 2 * (16 * 2 + 2 * 16)
TASK = TaskSettings(
    objective="next_token",
    partition="iid",
    num_clients=2,
    fraction_train=1.0,
    local_epochs=2,
    local_learning_rate=0.5,
    num_rounds=10,
)


@pytest.mark.parametrize("check", checks(plugins.MODELS), ids=str)
def test_the_model_keeps_the_contract(check):
    check(Candidate(LoraTransformer, SMALL, feature_shape=(LENGTH,)))


def text():
    """Sequences in which each symbol follows the one before it."""
    first = np.arange(60)[:, None] % SYMBOLS
    symbols = (first + np.arange(LENGTH + 1)) % SYMBOLS
    return DataSet(
        Examples(symbols[:40, :-1].astype(np.float32), symbols[:40, 1:], targets="tokens"),
        Examples(symbols[40:, :-1].astype(np.float32), symbols[40:, 1:], targets="tokens"),
        SYMBOLS,
    )


def test_only_adapters_travel_and_they_learn():
    model = LoraTransformer(LoraTransformer.Options(**SMALL))
    result = simulate(TASK, text(), model=model)
    assert result.vector.shape == (ADAPTERS,)
    tested = [found.metrics["loss"] for found in result.rounds if "loss" in found.metrics]
    assert tested[-1] < 0.9 * tested[0]


def test_the_base_is_that_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_transformer.BASES", tmp_path)
    torch.manual_seed(1)
    base = Transformer(LENGTH, SYMBOLS, 16, 2, 1)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    options = LoraTransformer.Options(**SMALL, base="base")
    made = LoraTransformer(options).build((LENGTH,), SYMBOLS)
    symbols = torch.arange(LENGTH)[None].float() % SYMBOLS
    torch.testing.assert_close(made(symbols), base(symbols), rtol=0, atol=0)  # adapters begin with zeros
    assert {name for name, each in made.named_parameters() if each.requires_grad} == {
        f"blocks.0.{layer}.lora_{half}.default.weight" for layer in ("query", "value") for half in "AB"
    }
    wider = LoraTransformer.Options(**{**SMALL, "width": 32}, base=options.base)
    with pytest.raises(BadInput, match="there is no base base of this size here"):
        LoraTransformer(wider).build((LENGTH,), SYMBOLS)
    (tmp_path / "damaged.safetensors").write_bytes(b"no such file")
    damaged = LoraTransformer.Options(**SMALL, base="damaged")
    with pytest.raises(BadInput, match="there is no base damaged"):
        LoraTransformer(damaged).build((LENGTH,), SYMBOLS)
    with pytest.raises(ValueError, match="base"):
        LoraTransformer.Options(**SMALL, base="../../etc/passwd")


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match=r"needs sequences \[length\]"):
        LoraTransformer().build((2, 3), 4)
    with pytest.raises(BadInput, match="3 heads do not divide the width 16"):
        LoraTransformer(LoraTransformer.Options(**{**SMALL, "heads": 3})).build((LENGTH,), SYMBOLS)
