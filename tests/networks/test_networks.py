"""The networks as published: sizes, constants, shapes."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spatial_ensemble import networks
from spatial_ensemble.errors import UserError


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "size", "published"),
    [
        ("resnet18", 1000, 224, 11_689_512),  # torchvision
        ("resnet50", 1000, 224, 25_557_032),  # torchvision
        ("resnet18-cifar", 10, 32, 11_173_962),  # SimCLR's stem: 64 filters of 3x3 in place of 7x7
        ("vit-tiny", 1000, 224, 5_717_416),  # timm's vit_tiny_patch16_224
    ],
)
def test_number_of_parameters(name: str, classes: int, size: int, published: int) -> None:
    network = networks.build(name, channels=3, size=size)
    assert parameters(network) + (network.num_features + 1) * classes == published


@pytest.mark.parametrize("name", networks.names())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_images_become_features(name: str, channels: int, size: int) -> None:
    network = networks.build(name, channels=channels, size=size)
    features = network.eval()(torch.randn(2, channels, size, size))
    assert features.shape == (2, network.num_features) and features.isfinite().all()


@pytest.mark.parametrize("name", networks.names())
def test_gradients_reach_every_parameter(name: str) -> None:
    network = networks.build(name, channels=3, size=16)
    network(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize(("name", "classes", "millions"), [("wrn-28-2", 10, 1.47), ("wrn-28-8", 100, 23.40)])
def test_wide_resnet_has_the_published_size(name: str, classes: int, millions: float) -> None:
    network = networks.build(name, channels=3, size=32)
    assert round((parameters(network) + (network.num_features + 1) * classes) / 1e6, 2) == millions


def test_wide_resnet_has_the_published_constants() -> None:
    network = networks.build("wrn-28-2", channels=3, size=32)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(norms) == 25 and all((norm.momentum, norm.eps) == (0.001, 0.001) for norm in norms)
    assert sorted({conv.out_channels for conv in convolutions}) == [16, 32, 64, 128]
    assert sum(conv.kernel_size == (3, 3) for conv in convolutions) == 25  # 28 layers with 2 shortcuts and a classifier
    assert sum(conv.stride == (2, 2) for conv in convolutions) == 4  # two stages, each with its shortcut
    for conv in convolutions:
        expected = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.15), conv


def test_wide_resnet_activates_with_a_slope_of_a_tenth() -> None:
    network = networks.WideResNet(10, 1, channels=3).eval()
    block = network.blocks[0]
    with torch.no_grad():
        for norm in (block.bn1, block.bn2):
            norm.running_var.fill_(1 - norm.eps)
        x = torch.randn(2, 16, 8, 8)
        hidden = block.conv1(torch.where(x > 0, x, 0.1 * x))
        expected = x + block.conv2(torch.where(hidden > 0, hidden, 0.1 * hidden))
        block.activate_shortcut = False
        torch.testing.assert_close(block(x), expected)


def test_wide_resnet_is_the_published_one_from_end_to_end() -> None:
    """Written plainly; the very first shortcut alone is activated (google-research/fixmatch, libml/models.py)."""
    torch.manual_seed(0)
    network = networks.WideResNet(16, 2, channels=3).eval()
    for parameter in network.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape))
    for name, buffer in network.named_buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5 * name.endswith("var"))
    state = network.state_dict()

    def activated(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 0.001).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.1 * x)

    images = torch.randn(2, 3, 16, 16)
    x = nn.functional.conv2d(images, state["conv.weight"], padding=1)
    for number in range(6):
        block, stride = f"blocks.{number}", 2 if number in (2, 4) else 1
        inner = activated(x, f"{block}.bn1")
        shortcut = inner if number == 0 else x
        if number % 2 == 0:
            shortcut = nn.functional.conv2d(shortcut, state[f"{block}.shortcut.weight"], stride=stride)
        inner = nn.functional.conv2d(inner, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        inner = nn.functional.conv2d(activated(inner, f"{block}.bn2"), state[f"{block}.conv2.weight"], padding=1)
        x = shortcut + inner
    with torch.no_grad():
        torch.testing.assert_close(network(images), activated(x, "bn").mean(dim=(2, 3)), rtol=1e-4, atol=1e-3)


def test_wide_resnet_of_an_impossible_depth() -> None:
    with pytest.raises(ValueError, match="depth 27"):
        networks.WideResNet(27, 2, channels=3)


def test_cifar_stem_keeps_the_resolution() -> None:
    network = networks.build("resnet18-cifar", channels=3, size=32)
    sizes = []
    network.layer1.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
    network(torch.zeros(2, 3, 32, 32))
    assert sizes == [32] and network.conv1.kernel_size == (3, 3)


def test_the_small_residual_network_is_a_fraction_of_resnet18() -> None:
    images, operations = torch.zeros(1, 3, 32, 32), {}
    for name in ("resnet10-small", "resnet18-cifar"):
        with FlopCounterMode(display=False) as counter:
            networks.build(name, channels=3, size=32)(images)
        operations[name] = counter.get_total_flops() // 2_000_000
    assert operations == {"resnet10-small": 15, "resnet18-cifar": 555}
    convolutions = [m for m in networks.build("resnet10-small", channels=3, size=32).modules() if type(m) is nn.Conv2d]
    assert sum(conv.kernel_size == (3, 3) for conv in convolutions) == 9  # ten layers with a classifier


def test_vision_transformer_takes_smaller_crops() -> None:
    network = networks.build("vit-mini", channels=3, size=32)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 128)


@pytest.mark.parametrize("size", [28, 50, 100, 150])
def test_vision_transformer_pads_to_whole_patches(size: int) -> None:
    network = networks.build("vit-mini", channels=3, size=size).eval()
    images = torch.randn(2, 3, size, size)
    padding = -size % network.patch_embed.patch_size[0]
    assert padding
    with torch.no_grad():
        assert torch.equal(network(images), network(nn.functional.pad(images, (0, padding, 0, padding))))
        assert network(images[..., : size // 2, : size // 2]).shape == (2, 128)


def test_vision_transformer_of_whole_patches_is_that_of_timm() -> None:
    sizes = {"img_size": 32, "patch_size": 4, "num_classes": 0, "embed_dim": 128, "depth": 4, "num_heads": 4}
    built = []
    for build in (
        lambda: networks.build("vit-mini", channels=3, size=32),
        lambda: VisionTransformer(**sizes, dynamic_img_size=True),
    ):
        torch.manual_seed(0)
        built.append(build().eval())
    one, other = (network.state_dict() for network in built)
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    for side in (32, 16):
        images = torch.randn(2, 3, side, side)
        assert torch.equal(*(network(images) for network in built))


def test_weights_are_a_function_of_the_global_seed() -> None:
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(networks.build("small", channels=1, size=8).state_dict())
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
    assert not all(torch.equal(built[0][name], built[2][name]) for name in built[0])


@pytest.mark.parametrize("size", [1, 8, 28, 32, 64, 96, 224])
def test_default_network_can_be_built(size: int) -> None:
    assert networks.default_network(size) in networks.names()


@pytest.mark.parametrize("name", ["wrn-28-3", "nowhere.network", "torch.nn.nothing", ""])
def test_unknown_network_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"network '{name}' is not known: use one of small, wrn-28-2"):
        networks.build(name, channels=3, size=32)


class Own(nn.Flatten):
    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.num_features = channels * size**2


def without_features(channels: int, size: int) -> nn.Module:
    return nn.Flatten()


def test_own_network_by_its_dotted_path() -> None:
    assert networks.build(f"{__name__}.Own", channels=3, size=4).num_features == 48
    with pytest.raises(UserError, match=r"network 'torch.nn.ReLU' cannot be built from `channels` and `size`"):
        networks.build("torch.nn.ReLU", channels=3, size=4)
    with pytest.raises(UserError, match="network 'json' cannot be built"):
        networks.build("json", channels=3, size=4)
    with pytest.raises(UserError, match="has no integer `num_features`"):
        networks.build(f"{__name__}.without_features", channels=3, size=4)
