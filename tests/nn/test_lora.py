import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmtok.nn.compiled import StaticStep
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.lora import LoRA, LoRALinear, adapters, dequantised, effective_weight, is_adapter
from mmtok.nn.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(2, 32, 4, 2, 48, qkv_bias=True)
BASES = ["float32", "int8"]


def trunk(base="float32", rank=3, learned=True):
    """A trunk with random weights; `learned`: B is not 0 any more."""
    torch.manual_seed(0)
    plain = Transformer(CONFIG, 7)
    for name, x in plain.named_parameters():
        nn.init.normal_(x, mean=float(name.endswith("norm.weight")), std=0.2)
    adapted = Transformer(CONFIG, 7, LoRA(rank, 2.0 * rank, base))
    with torch.no_grad():
        for name, layer in adapters(adapted):
            layer.set_weight(plain.get_parameter(f"{name}.weight"))
            if learned:
                nn.init.normal_(layer.lora_B, std=0.1)
        rest = {
            name: x for name, x in plain.state_dict().items() if not name.endswith("_proj.weight")
        }
        adapted.load_state_dict(rest, strict=False)
    return plain.eval(), adapted.eval()


def read(model, x):
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    return model(x, position, torch.zeros_like(position))


def states(length=12):
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1))


def test_at_first_nothing_has_changed():
    """By the bit: B is 0."""
    plain, adapted = trunk(learned=False)
    assert torch.equal(read(plain, states()), read(adapted, states()))


def test_an_int8_base_is_rounded_to_its_own_steps():
    plain, adapted = trunk("int8", learned=False)
    for name, layer in adapters(adapted):
        w = plain.get_parameter(f"{name}.weight")
        assert layer.weight.dtype == torch.int8
        step = w.abs().amax(1, keepdim=True) / 127
        assert bool(((layer.base_weight() - w).abs() <= step / 2 * 1.001).all())
        with torch.no_grad():
            w.copy_(layer.base_weight())
    torch.testing.assert_close(read(plain, states()), read(adapted, states()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_merged_equals_unmerged(base):
    plain, adapted = trunk(base)
    before = read(plain, states())
    wanted = read(adapted, states())
    with torch.no_grad():
        for name, layer in adapters(adapted):
            plain.get_parameter(f"{name}.weight").copy_(layer.merged_weight())
    torch.testing.assert_close(read(plain, states()), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(before, wanted, rtol=0, atol=1e-1)


@pytest.mark.parametrize("base", BASES)
def test_a_layer_is_the_formula_and_so_are_its_gradients(base):
    """y = W x + b + alpha / r B A x with W as it is dequantised; in float64."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    w = linear.weight.detach().clone()
    layer = LoRALinear(linear, LoRA(2, 3.0, base))
    layer.set_weight(w)
    nn.init.normal_(layer.lora_B)
    layer.double()
    w = layer.base_weight().detach()
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sin().sum().backward()
    a, b, x2 = (t.detach().clone().requires_grad_(True) for t in (layer.lora_A, layer.lora_B, x))
    wanted = F.linear(x2, w, layer.bias) + 1.5 * x2 @ a.T @ b.T
    wanted.sin().sum().backward()
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    for own, other in ((layer.lora_A, a), (layer.lora_B, b), (x, x2)):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(effective_weight(layer), w + 1.5 * b @ a)


def test_an_int8_base_keeps_no_second_copy_for_the_backward_pass():
    layer = LoRALinear(nn.Linear(64, 64), LoRA(1, 1.0, "int8"))
    layer.set_weight(torch.randn(64, 64))
    kept = []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    sizes = {t.dtype for t in kept if t.numel() >= 64 * 64}
    assert sizes == {torch.int8}


@pytest.mark.parametrize("base", BASES)
def test_adapters_learn_and_nothing_else_does(base):
    adapted = trunk(base)[1]
    read(adapted, states()).square().sum().backward()
    learn = {name for name, x in adapted.named_parameters() if x.requires_grad}
    assert learn == {
        name for name, _ in adapted.named_parameters() if name.endswith(("lora_A", "lora_B"))
    }
    assert len(learn) == 2 * 7 * CONFIG.depth and all(map(is_adapter, learn))
    for name in learn:
        grad = adapted.get_parameter(name).grad
        assert grad is not None and bool(grad.any()), name


@pytest.mark.parametrize("base", BASES)
def test_the_cache_and_the_compiled_step_read_with_the_adapters(base):
    adapted = trunk(base)[1].requires_grad_(False)
    wanted = read(adapted, states())
    decoder = KVCacheDecoder(adapted)
    parts = [decoder.forward(x) for x in states().split([5, 1, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=1e-5)
    step = StaticStep(adapted, torch.float32)
    assert step.has_weights_of(adapted)
    [(_, first), *_] = adapters(adapted)
    first.lora_B[0, 0] += 1
    assert not step.has_weights_of(adapted)


def test_weights_come_back_from_a_state_dict_with_their_types():
    adapted = trunk("int8")[1]
    other = Transformer(CONFIG, 7, LoRA(3, 6.0, "int8")).eval()
    other.load_state_dict(copy.deepcopy(adapted.state_dict()))
    assert torch.equal(read(other, states()), read(adapted, states()))
    integers = torch.tensor([[-127, 5]], dtype=torch.int8)
    assert dequantised(integers, torch.tensor([[0.5]]), torch.float32).tolist() == [[-63.5, 2.5]]


@pytest.mark.parametrize("base", BASES)
def test_under_autocast_products_are_those_of_bfloat16(base):
    adapted = trunk(base)[1]
    x = states().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        y = read(adapted, x)
    y.square().sum().backward()
    wanted = read(adapted, states())
    assert (y - wanted).norm() < 0.03 * wanted.norm()
    assert x.grad.dtype == torch.float32
