"""The private form must compute what the author's model computes, with one order of parameters on both sides."""

import pytest
import torch
from torch import nn

from datasites.privacy.layers import private_form
from datasites.privacy.parameters import dimension, flatten, unflatten
from datasites.privacy.records import UnsupportedModel
from tests.privacy.models import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_private_form_gives_the_same_outputs(kind):
    torch.manual_seed(3)
    build, inputs = KINDS[kind]
    module, x = build().eval(), inputs(8)
    torch.testing.assert_close(private_form(module).eval()(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_two_sides_exchange_a_model_as_one_vector(kind):
    build, inputs = KINDS[kind]
    hospital, researcher, x = private_form(build()).eval(), private_form(build()).eval(), inputs(4)
    unflatten(researcher, flatten(hospital))
    torch.testing.assert_close(hospital(x), researcher(x))
    assert flatten(hospital).shape == (dimension(build()),)


def test_masks_of_attention_work_as_in_torch():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    mine, x = private_form(attention), torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    for masks in (
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": causal, "key_padding_mask": padding},
    ):
        expected, weights = attention(x, x, x, **masks)
        got, own_weights = mine(x, x, x, **masks)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own_weights, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.GRU(3, 4),
        nn.LSTM(3, 4, batch_first=True, proj_size=2),
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
    ],
)
def test_a_setting_without_private_form_is_refused_with_the_fix(module):
    with pytest.raises(UnsupportedModel, match="batch_first=True|proj_size|add_bias_kv"):
        private_form(nn.Sequential(module))


def test_the_original_is_left_as_it_was():
    module = KINDS["gru"][0]()
    private_form(module)
    assert type(module.gru) is nn.GRU


def test_a_vector_of_another_model_or_a_diverged_one_is_refused():
    module = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="4"):
        unflatten(module, torch.zeros(5).numpy())
    with pytest.raises(ValueError, match="finite"):
        unflatten(module, torch.full((4,), torch.nan).numpy())


def test_buffers_are_not_in_the_vector():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = flatten(module).copy()
    module[1].running_mean += 5.0
    assert (flatten(module) == before).all()
    assert len(before) == dimension(module) == 12
