"""The base classifiers."""

import gc
import math
import weakref
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor, nn

from engine.choices import SMALLEST_SIDE
from engine.hypergradient import hessian
from engine.models import BUILDERS, build, flat_weights, with_weights
from engine.models.initialise import he_normal, he_normal_truncated
from engine.models.lenet import LeNet, WinogradLeNet
from engine.models.resnet import SameConv2d, same_padding
from engine.records import write_tensors
from engine.streams import stream
from engine.votes import quicker
from tests import textbook

LENETS = ("lenet", "lenet-narrow", "lenet-torch")
NORMALISED = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet18")
QUICK = [name for name in BUILDERS if name not in ("resnet32", "resnet44", "resnet56")]  # those are resnet20 but longer


def fresh(architecture: str = "lenet", index: int = 0, **settings) -> nn.Module:
    return build(architecture, generator=stream(0, "test model", index), **settings)


def images(count: int = 6, shape: tuple[int, int, int] = (1, 28, 28)) -> Tensor:
    return torch.rand(count, *shape, generator=stream(0, "test images"))


def shaken(model: nn.Module) -> nn.Module:
    """In float64, with biases, scales and running statistics that matter."""
    model = model.double()
    with torch.no_grad():
        for number, tensor in enumerate([*model.parameters(), *model.buffers()]):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=stream(0, "shake", number), dtype=torch.float64)
                tensor.add_(0.05 * noise)
    return model


def resnet_parameters(n: int, *, channels: int, pacd: bool) -> int:
    """Summed layer by layer; a normalisation has two numbers a channel, PACD's convolutions have biases."""
    total = 9 * channels * 16 + 16 * pacd + 2 * 16
    for before, width in pairwise((16, 16, 32, 64)):
        for block in range(n):
            inputs = before if block == 0 else width
            total += 9 * inputs * width + 9 * width * width + 2 * (width * pacd + 2 * width)
            if inputs != width:
                total += inputs * width + (width if pacd else 2 * width)
    return total + 64 * 10 + 10


def test_the_networks_have_as_many_parameters_as_published():
    def count(architecture: str, *shape: int) -> int:
        return flat_weights(fresh(architecture, shape=shape)).numel()

    assert count("lenet", 1, 28, 28) == 431_080  # Mehra et al.'s code
    assert count("resnet20-pacd", 3, 32, 32) == 273_066  # likewise
    assert count("resnet20", 3, 32, 32) == 272_474  # He et al. with projections
    assert count("resnet18", 3, 32, 32) == 11_173_962  # with a stem of 3×3
    assert count("mlp", 1, 28, 28) == 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10


def test_the_networks_have_as_many_parameters_as_their_layers_say():
    narrow = (25 * 8 + 8) + (8 * 25 * 16 + 16) + (256 * 100 + 100) + (100 * 10 + 10)
    assert flat_weights(fresh("lenet-narrow")).numel() == narrow
    colour = fresh(shape=(3, 28, 28), num_classes=4)
    assert flat_weights(colour).numel() == 431_080 + 2 * 25 * 20 - 6 * 501
    convolutions = 9 * (32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * (32 + 64)
    assert flat_weights(fresh("convnet")).numel() == convolutions + 49 * 64 * 256 + 256 + 256 * 10 + 10
    for name, n in {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}.items():
        for channels in (1, 3):
            found = flat_weights(fresh(name, shape=(channels, 28, 28))).numel()
            assert found == resnet_parameters(n, channels=channels, pacd=False)
    assert flat_weights(fresh("resnet20-pacd")).numel() == resnet_parameters(3, channels=1, pacd=True)


@pytest.mark.parametrize("architecture", NORMALISED[:5])
def test_a_residual_network_is_as_deep_as_its_name_says(architecture):
    layers = [m for name, m in fresh(architecture).named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    projections = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert len(layers) - len(projections) == int(architecture.removeprefix("resnet"))
    assert len(projections) == 2


@pytest.mark.parametrize("architecture", QUICK)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 24, 17)])
def test_logits_are_one_row_per_image_and_do_not_depend_on_the_other_images(architecture, shape):
    model, batch = fresh(architecture, shape=shape, num_classes=7).eval(), images(shape=shape)
    logits = model(batch)
    assert logits.shape == (6, 7)
    assert torch.allclose(model(batch[2:3]), logits[2:3], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("architecture", BUILDERS)
def test_the_smallest_images_are_taken_and_smaller_ones_refused(architecture):
    side = SMALLEST_SIDE.get(architecture, 8)
    model = fresh(architecture, shape=(3, side, side)).eval()
    assert model(images(2, (3, side, side))).shape == (2, 10)
    with pytest.raises(ValueError, match=f"{architecture} needs images of at least {side}×{side} pixels, got 30×7"):
        fresh(architecture, shape=(3, 7, 30))
    if architecture in LENETS:  # nothing would be left of them
        assert LeNet((1, side - 1, side - 1), 10).fc1.in_features == 0


@pytest.mark.parametrize("architecture", LENETS)
def test_pooling_before_relu_gives_the_textbook_network(architecture):
    model, x = shaken(fresh(architecture)), images().double()
    assert torch.allclose(model(x), textbook.lenet(model.state_dict(), x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_the_residual_networks_are_what_is_written_out_from_their_weights(shape):
    x = images(2, shape).double()
    normalised = shaken(fresh("resnet20", shape=shape)).eval()
    assert torch.allclose(
        normalised(x),
        textbook.resnet(normalised.state_dict(), x, n=3, pad=textbook.padded_all_around),
        rtol=1e-10,
        atol=1e-10,
    )
    pacd = shaken(fresh("resnet20-pacd", shape=shape))
    expected = textbook.resnet(pacd.state_dict(), x, n=3, pad=textbook.padded_at_the_end)
    assert torch.allclose(pacd(x), expected, rtol=1e-10, atol=1e-10)
    symmetric = textbook.resnet(pacd.state_dict(), x, n=3, pad=textbook.padded_all_around)
    assert float((symmetric - expected).norm() / expected.norm()) > 1e-3  # it is another function
    assert torch.equal(pacd.train()(x), pacd.eval()(x))


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (9, 9)])
def test_same_padding_puts_the_odd_zero_at_the_end(sides):
    x, conv = images(2, (3, *sides)), SameConv2d(3, 4, 3, 2)
    left, right, top, bottom = (
        padding for side in reversed(sides) for padding in ((0, 1) if side % 2 == 0 else (1, 1))
    )
    expected = F.conv2d(F.pad(x, (left, right, top, bottom)), conv.weight, conv.bias, 2)
    assert torch.allclose(conv(x), expected, atol=1e-6)
    assert expected.shape[2:] == tuple(-(-side // 2) for side in sides)


def test_same_padding_of_known_cases():
    assert same_padding(32, 3, 1) == (1, 1)
    assert same_padding(32, 3, 2) == (0, 1)
    assert same_padding(7, 3, 2) == (1, 1)
    assert same_padding(32, 1, 2) == (0, 0)
    assert same_padding(28, 5, 2) == (1, 2)


def test_resnet18_keeps_a_small_images_size_until_its_second_stage():
    model, sizes = fresh("resnet18", shape=(3, 32, 32)).eval(), []
    for stage in (model.network.layer1, model.network.layer4):
        stage.register_forward_hook(lambda _module, _given, out: sizes.append(tuple(out.shape[1:])))
    model(images(1, (3, 32, 32)))
    assert sizes == [(64, 32, 32), (512, 4, 4)]


def looks_uniform(values: Tensor) -> bool:
    """Whether mean (variance 1/3) and second moment (variance 4/45) are those of U(−1, 1), within five of their
    standard errors: false alarm 5.7e-7 each."""
    n = values.numel()
    near = abs(float(values.mean())) < 5 / math.sqrt(3 * n)
    return near and abs(float(values.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


def test_fresh_weights_are_glorot_uniform_and_biases_zero():
    # fan in + fan out, a kernel counting all its pixels
    limits = {"conv1": 25 * (1 + 20), "conv2": 25 * (20 + 50), "fc1": 800 + 500, "fc2": 500 + 10}
    for name, parameter in fresh().named_parameters():
        layer, kind = name.split(".")
        if kind == "bias":
            assert (parameter == 0).all()
            continue
        values = parameter.detach().double() / math.sqrt(6 / limits[layer])
        assert float(values.abs().max()) <= 1 + 1e-6
        assert looks_uniform(values)


def test_fresh_weights_are_those_of_torchs_layers_where_that_is_asked():
    """U(±1/√fan_in), biases too: as torch's own layers draw them, which no generator can be given to."""
    fan_in = {"conv1": 25, "conv2": 25 * 20, "fc1": 800, "fc2": 500}
    of_torch = fresh("lenet-torch")
    for name, parameter in of_torch.named_parameters():
        values = parameter.detach().double() * math.sqrt(fan_in[name.split(".")[0]])
        assert float(values.abs().max()) <= 1 + 1e-6
        assert looks_uniform(values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in (of_torch.conv1, of_torch.fc1):
            drawn = layer.weight.detach().clone()
            layer.reset_parameters()
            both = torch.cat([drawn.flatten(), layer.weight.detach().flatten()]).double()
            assert looks_uniform(both * math.sqrt(layer.weight[0].numel()))


@pytest.mark.parametrize(("initialise", "kurtosis", "most"), [(he_normal, 3.0, 6.0), (he_normal_truncated, 2.37, 2.28)])
def test_he_weights_have_variance_two_over_fan_in(initialise, kurtosis, most):
    """Normal, or normal cut at ±2: of variance 0.77374 and kurtosis 2.3662, so cut at 2.2737 standard deviations."""
    layer = nn.Conv2d(32, 64, 3).requires_grad_(False)
    initialise(layer, stream(0, "he"))
    values = layer.weight.double() / math.sqrt(2 / (32 * 9))
    n = values.numel()
    # 5 standard errors; false alarm 5.7e-7 each
    assert abs(float(values.mean())) < 5 / math.sqrt(n)
    assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    assert float(values.abs().max()) < most


@pytest.mark.parametrize("architecture", [name for name in QUICK if name != "lenet-torch"])
def test_fresh_biases_are_zero_scales_one_and_statistics_those_of_nothing_seen(architecture):
    model = fresh(architecture)
    for name, tensor in model.state_dict().items():
        kind = name.rsplit(".", 1)[1]
        if kind in ("bias", "shift", "running_mean", "num_batches_tracked"):
            assert (tensor == 0).all(), name
        elif kind in ("scale", "running_var") or tensor.ndim == 1:
            assert (tensor == 1).all(), name
        else:
            assert float(tensor.std()) > 0, name


@pytest.mark.parametrize("architecture", QUICK)
def test_equal_generators_give_equal_networks_and_others_others(architecture):
    assert torch.equal(flat_weights(fresh(architecture)), flat_weights(fresh(architecture)))
    assert not torch.equal(flat_weights(fresh(architecture)), flat_weights(fresh(architecture, index=1)))


@pytest.mark.parametrize("architecture", QUICK)
def test_building_neither_reads_nor_moves_the_global_generator(architecture):
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), flat_weights(fresh(architecture))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(flat_weights(fresh(architecture)), first)


@pytest.mark.parametrize("architecture", ["mlp", "lenet-narrow", "convnet", "resnet8", "resnet20-pacd"])
def test_a_network_with_its_own_weight_vector_is_itself(architecture):
    model, x = fresh(architecture), images()
    assert torch.allclose(with_weights(model, flat_weights(model))(x), model(x), atol=1e-6)


def test_a_network_with_anothers_weight_vector_is_the_other_and_stays_what_it_was():
    model, other, x = fresh("lenet-narrow"), fresh("lenet-narrow", 1), images()
    before = flat_weights(model)
    assert torch.equal(with_weights(model, flat_weights(other))(x), other(x))
    assert torch.equal(flat_weights(model), before)


def test_a_classifier_that_is_let_go_frees_its_weights_at_once():
    """Not only when Python looks for cycles: an attack makes thousands, of weights that may take 300 MB."""
    model = fresh("resnet8")
    weights = flat_weights(model)
    gone = weakref.ref(weights)
    gc.disable()
    try:
        with_weights(model, weights)(images())
        del weights
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("architecture", ["lenet-narrow", "resnet8"])
def test_the_derivative_in_the_weight_vector_is_that_of_the_parameters(architecture):
    model, x = fresh(architecture).double(), images().double()
    weights = flat_weights(model).requires_grad_()
    (found,) = torch.autograd.grad(with_weights(model, weights)(x).square().sum(), weights)
    model(x).square().sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def cross_entropy(model: nn.Module):
    labels = torch.arange(6) % 10
    return lambda weights, x: F.cross_entropy(with_weights(model, weights)(x), labels)


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "resnet8", "resnet20-pacd"])
def test_hessian_vector_products_are_differences_of_gradients(architecture):
    """In float64 and training mode, in which the surrogate is; batch normalisation couples the images of a batch."""
    model, x = shaken(fresh(architecture, shape=(1, 8, 8))), images(shape=(1, 8, 8)).double()
    loss, weights = cross_entropy(model), flat_weights(model)
    direction = torch.randn(len(weights), generator=stream(0, "direction"), dtype=torch.float64)
    direction *= weights.norm() / direction.norm()

    def slope(step: float) -> Tensor:
        moved = (weights + step * direction).requires_grad_()
        return torch.autograd.grad(loss(moved, x), moved)[0]

    product, step = hessian(loss, weights, x)(direction), 1e-7  # so small that no ReLU changes its side
    difference = (slope(step) - slope(-step)) / (2 * step)
    assert float((product - difference).norm() / difference.norm()) < 1e-4
    assert float(product.norm()) > 0


@pytest.mark.parametrize("architecture", ["resnet8", "resnet18"])
def test_losses_of_a_weight_vector_leave_the_running_statistics_alone_and_repeat_to_the_byte(architecture):
    model, x = fresh(architecture, shape=(1, 8, 8)), images(shape=(1, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss, weights = cross_entropy(model), flat_weights(model)
    assert model.training
    products = [hessian(loss, weights, x)(torch.ones_like(weights)) for _ in range(2)]
    assert torch.equal(*products)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_running_statistics_survive_their_file(tmp_path):
    model, other, x = fresh("resnet8"), fresh("resnet8", 1), images()
    model(x)  # in training mode, which moves the statistics
    assert int(model.norm.num_batches_tracked) == 1
    path = tmp_path / "victim.safetensors"
    write_tensors(path, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    other.load_state_dict({name: torch.from_numpy(array) for name, array in load_file(path).items()})
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_flat_weights_are_a_copy():
    model = fresh("lenet-narrow")
    flat_weights(model).zero_()
    assert float(flat_weights(model).abs().max()) > 0


def test_the_widths_of_a_lenet_are_its_own():
    assert LeNet((1, 28, 28), 10, widths=(2, 3, 4)).fc1.weight.shape == (4, 48)


@pytest.mark.parametrize("architecture", QUICK)
def test_the_aligned_network_is_the_same_function_and_a_copy(architecture):
    model = shaken(fresh(architecture)).eval()
    torch.manual_seed(1)
    before, weights = torch.get_rng_state(), flat_weights(model)
    aligned = model.aligned()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(aligned(images().double()), model(images().double()), rtol=1e-12)
    assert not aligned.training
    with torch.no_grad():
        for parameter in aligned.parameters():
            parameter.add_(1)
    assert torch.equal(flat_weights(model), weights)


def test_an_aligned_lenet_has_widths_in_powers_of_two():
    aligned = LeNet((1, 28, 28), 10, widths=(2, 20, 33)).aligned()
    assert [len(layer.weight) for layer in (aligned.conv1, aligned.conv2, aligned.fc1, aligned.fc2)] == [8, 32, 64, 10]


def test_a_lenet_with_another_step_in_it_is_trained_and_certified_as_what_it_is():
    class Halved(LeNet):
        def rest(self, h: Tensor) -> Tensor:
            return super().rest(h / 2)

    model, x = Halved((1, 28, 28), 10), torch.rand(20, 1, 28, 28, generator=stream(0, "x"))
    assert torch.equal(model(x), model.rest(model.stem(x)))
    assert not torch.allclose(model(x), LeNet.rest(model, model.stem(x)))
    assert quicker(model, x.device) is None or not isinstance(quicker(model, x.device), WinogradLeNet)
