"""Accuracies against scikit-learn's on the same features."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from spatial_ensemble.data.images import Images
from spatial_ensemble.errors import UserError
from spatial_ensemble.evaluation import accuracy, knn_accuracy, knn_predict, linear_accuracy, predict
from spatial_ensemble.evaluation.linear import PROTOCOLS, linear_probe

MEAN, STD = (0.4, 0.5), (0.2, 0.3)


def images(count: int, classes: int = 4, seed: int = 0) -> Images:
    """Noise around a pattern of each class, which features can tell apart, but not without error."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(9).uniform(0, 255, (classes, 2, 5, 5))
    labels = rng.integers(classes, size=count)
    pixels = np.clip(patterns[labels] + rng.normal(0, 150, (count, 2, 5, 5)), 0, 255).astype(np.uint8)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))


def features(network: nn.Module, data: Images) -> np.ndarray:
    """Written anew: float, divided by 255, normalised by channel, in eval mode."""
    x = data.images.numpy() / 255
    x = (x - np.reshape(MEAN, (1, 2, 1, 1))) / np.reshape(STD, (1, 2, 1, 1))
    with torch.no_grad():
        return network.eval()(torch.from_numpy(x).float()).numpy()


def test_predict_normalises_and_restores_the_mode() -> None:
    network, data = backbone(), images(23)
    network.train()
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outputs = predict(network, data.images, MEAN, STD, batch_size=5)
    assert [module.training for module in network.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not outputs.requires_grad
    np.testing.assert_allclose(outputs.numpy(), features(network, data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_predict_gives_a_network_images_of_its_own_type(dtype: torch.dtype) -> None:
    data = images(23)
    outputs = predict(backbone().to(dtype), data.images, MEAN, STD)
    assert outputs.dtype == torch.float32
    np.testing.assert_allclose(outputs.numpy(), features(backbone(), data), rtol=0.05, atol=0.05)


def test_predict_of_some_images() -> None:
    network, data, rows = backbone(), images(23), torch.tensor([5, 22, 5, 0, 7])
    outputs = predict(network, data.images, MEAN, STD, rows=rows, batch_size=2)
    torch.testing.assert_close(outputs, predict(network, data.images, MEAN, STD)[rows])


def test_predict_restores_the_mode_after_an_error() -> None:
    network = backbone().train()
    with pytest.raises(RuntimeError):
        predict(network, torch.zeros(3, 2, 7, 7, dtype=torch.uint8), MEAN, STD)
    assert network.training


def test_accuracy() -> None:
    network, data = backbone(), images(200, classes=12)
    expected = accuracy_score(data.labels.numpy(), features(network, data).argmax(axis=1))
    assert accuracy(network, data, MEAN, STD) == pytest.approx(100 * expected)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (50, 0.03), (200, 0.5)])
def test_knn_agrees_with_scikit_learn(k: int, temperature: float) -> None:
    network, train, test = backbone(), images(300), images(101, seed=1)
    reference = KNeighborsClassifier(
        k, weights=lambda distances: np.exp((1 - distances) / temperature), metric="cosine"
    )
    reference.fit(features(network, train), train.labels.numpy())
    expected = reference.predict(features(network, test))
    bank, known = torch.from_numpy(features(network, train)), train.labels
    predictions = knn_predict(
        torch.from_numpy(features(network, test)), bank, known, k=k, temperature=temperature, at_once=40
    )
    assert predictions.tolist() == expected.tolist()
    share = 100 * np.mean(expected == test.labels.numpy())
    assert 30 < share < 100
    assert knn_accuracy(network, train, test, MEAN, STD, k=k, temperature=temperature) == pytest.approx(share)


def test_knn_with_fewer_images_than_neighbours_and_with_a_tiny_temperature() -> None:
    bank, labels = torch.eye(3), torch.tensor([2, 0, 1])
    assert knn_predict(torch.eye(3) + 0.1, bank, labels, k=200, temperature=1e-3).tolist() == [2, 0, 1]


def with_unknown(train: Images) -> Images:
    """The same training images among others of unknown class."""
    noise = torch.randint(255, (50, 2, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    unknown = torch.full((50,), -1)
    return Images(torch.cat([noise, train.images]), torch.cat([unknown, train.labels]))


def test_images_of_unknown_class_are_no_neighbours() -> None:
    network, train, test = backbone(), images(100), images(101, seed=1)
    expected = knn_accuracy(network, train, test, MEAN, STD, k=9)
    assert knn_accuracy(network, with_unknown(train), test, MEAN, STD, k=9) == expected


@pytest.mark.parametrize("accuracy_of", [knn_accuracy, linear_accuracy])
def test_the_backbone_sees_no_image_of_unknown_class(accuracy_of: Callable[..., float]) -> None:
    network, seen = backbone(), list[int]()
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    accuracy_of(network, with_unknown(images(100)), images(30, seed=1), MEAN, STD)
    assert sorted(seen) == [30, 100]


@pytest.mark.parametrize("accuracy_of", [knn_accuracy, linear_accuracy])
def test_labels_that_are_all_unknown_are_refused(accuracy_of: Callable[..., float]) -> None:
    train = images(10)
    with pytest.raises(UserError, match="none of the 10 images has a known class"):
        accuracy_of(backbone(), Images(train.images, torch.full((10,), -1)), images(5), MEAN, STD)


def separable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 20, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(5, (count,), generator=draw)
    return centres[labels] + 0.9 * torch.randn(count, 20, generator=draw), labels


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_linear_probe_agrees_with_logistic_regression(protocol: str) -> None:
    (train, train_labels), (test, test_labels) = separable(600, 0), separable(400, 1)
    reference = LogisticRegression(max_iter=1000).fit(train.numpy(), train_labels.numpy())
    expected = reference.score(test.numpy(), test_labels.numpy())
    probe = linear_probe(train, train_labels, 5, PROTOCOLS[protocol], seed=0)
    found = (probe(test).argmax(dim=1) == test_labels).float().mean().item()
    assert 0.9 < expected < 1 and found == pytest.approx(expected, abs=0.02)
    assert any(isinstance(module, nn.BatchNorm1d) for module in probe) == (protocol == "paper")


def test_linear_accuracy_depends_on_its_seed_alone() -> None:
    network, train, test = backbone(), images(200), images(100, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = linear_accuracy(network, with_unknown(train), test, MEAN, STD, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert linear_accuracy(network, train, test, MEAN, STD, seed=3) == first
    assert first > knn_accuracy(network, train, test, MEAN, STD, k=1)  # 1 neighbour is noisy; a probe is not
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_linear_probe_of_fewer_images_than_a_batch(protocol: str) -> None:
    features, labels = separable(30, 0)
    probe = linear_probe(features, labels, 5, PROTOCOLS[protocol], seed=0)
    assert (probe(features).argmax(dim=1) == labels).float().mean() > 0.8


MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "autocast": lambda: torch.autocast("cpu")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_probe_is_the_same_in_every_mode_of_its_caller(mode: str, protocol: str) -> None:
    network, train, test = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(50)), images(300), images(100, seed=1)
    expected = linear_accuracy(network, train, test, MEAN, STD, protocol=protocol)
    weights = linear_probe(*separable(300, 0), 5, PROTOCOLS[protocol], seed=0).state_dict()
    with MODES[mode]():
        assert linear_accuracy(network, train, test, MEAN, STD, protocol=protocol) == expected
        found = linear_probe(*separable(300, 0), 5, PROTOCOLS[protocol], seed=0).state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
