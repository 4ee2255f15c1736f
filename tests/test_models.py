"""The base classifiers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config import Config
from engine.models import ARCHITECTURES, LeNet, build, flat_weights, with_weights
from engine.streams import stream


def fresh(architecture: str = "lenet", index: int = 0, **settings) -> torch.nn.Module:
    return build(architecture, generator=stream(0, "test model", index), **settings)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=stream(0, "test images"))


def test_the_networks_have_as_many_parameters_as_their_layers_say():
    assert flat_weights(fresh("lenet")).numel() == 431_080
    narrow = (25 * 8 + 8) + (8 * 25 * 16 + 16) + (256 * 100 + 100) + (100 * 10 + 10)
    assert flat_weights(fresh("lenet-narrow")).numel() == narrow
    assert sum(p.numel() for p in fresh(channels=3, num_classes=4).parameters()) == 431_080 + 2 * 25 * 20 - 6 * 501


def test_the_configuration_knows_every_architecture():
    fields = Config.model_fields["architecture"].annotation
    assert set(fields.__args__) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_one_row_per_image_and_do_not_depend_on_the_other_images(architecture):
    model, batch = fresh(architecture), images()
    logits = model(batch)
    assert logits.shape == (6, 10)
    assert torch.allclose(model(batch[2:3]), logits[2:3], atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pooling_before_relu_gives_the_textbook_network(architecture):
    """Convolution, ReLU, pooling, twice; then 800 features in (C, H, W) order; then two linear layers."""
    model, x = fresh(architecture).double(), images().double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases that matter
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=stream(0, "bias"), dtype=torch.float64))
    w = dict(model.named_parameters())
    channels = w["conv2.weight"].shape[0]
    h = F.max_pool2d(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"])), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, w["conv2.weight"], w["conv2.bias"])), 2)
    fc1 = w["fc1.weight"].view(-1, 4, 4, channels).permute(0, 3, 1, 2).reshape(-1, 16 * channels)
    h = F.relu(F.linear(h.flatten(1), fc1, w["fc1.bias"]))
    textbook = F.linear(h, w["fc2.weight"], w["fc2.bias"])
    assert torch.allclose(model(x), textbook, rtol=1e-12, atol=1e-12)


def test_fresh_weights_are_glorot_uniform_and_biases_zero():
    # fan in + fan out, a kernel counting all its pixels
    limits = {"conv1": 25 * (1 + 20), "conv2": 25 * (20 + 50), "fc1": 800 + 500, "fc2": 500 + 10}
    for name, parameter in fresh().named_parameters():
        layer, kind = name.split(".")
        if kind == "bias":
            assert (parameter == 0).all()
            continue
        limit, values = math.sqrt(6 / limits[layer]), parameter.detach().double() / math.sqrt(6 / limits[layer])
        n = values.numel()
        assert float(parameter.detach().abs().max()) <= limit
        # 5 standard errors of mean (variance 1/3) and of second moment (variance 4/45): false alarm 5.7e-7 each
        assert abs(float(values.mean())) < 5 / math.sqrt(3 * n)
        assert abs(float(values.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


def test_equal_generators_give_equal_networks_and_others_others():
    assert torch.equal(flat_weights(fresh()), flat_weights(fresh()))
    assert not torch.equal(flat_weights(fresh()), flat_weights(fresh(index=1)))


def test_building_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), flat_weights(fresh())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(flat_weights(fresh()), first)


def test_a_network_with_its_own_weight_vector_is_itself():
    model, x = fresh("lenet-narrow"), images()
    assert torch.equal(with_weights(model, flat_weights(model))(x), model(x))


def test_a_network_with_anothers_weight_vector_is_the_other_and_stays_what_it_was():
    model, other, x = fresh("lenet-narrow"), fresh("lenet-narrow", 1), images()
    before = flat_weights(model)
    assert torch.equal(with_weights(model, flat_weights(other))(x), other(x))
    assert torch.equal(flat_weights(model), before)


def test_the_derivative_in_the_weight_vector_is_that_of_the_parameters():
    model, x = fresh("lenet-narrow").double(), images().double()
    weights = flat_weights(model).requires_grad_()
    (found,) = torch.autograd.grad(with_weights(model, weights)(x).square().sum(), weights)
    model(x).square().sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert torch.allclose(found, expected, rtol=1e-12)


def test_flat_weights_are_a_copy():
    model = fresh("lenet-narrow")
    flat_weights(model).zero_()
    assert float(flat_weights(model).abs().max()) > 0


def test_the_widths_of_a_lenet_are_its_own():
    assert LeNet(1, 10, widths=(2, 3, 4)).fc1.weight.shape == (4, 48)
