"""The models that tasks can train, and their flat vectors."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.cropped_cnn import CroppedCnn
from fedsim.learning.models import Model
from fedsim.learning.networks import (
    Prepares,
    build_model,
    initial_vector,
    load_vector,
    num_parameters,
    share_vector,
    vector_of,
)
from fedsim.learning.randomness import generator
from fedsim.messages import ModelSpec


def _spec(name: str, shape: tuple[int, ...], classes: int = 10, **options: Any) -> ModelSpec:
    return ModelSpec(name=name, options=options, feature_shape=shape, num_classes=classes)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("2nn", (28, 28), 10, 199_210),
        ("cnn", (28, 28), 10, 1_663_370),
        ("cnn", (1, 28, 28), 10, 1_663_370),
        ("cifar_cnn", (3, 32, 32), 10, 1_068_298),
        ("logistic", (23,), 2, 48),
        ("mlp", (23,), 2, 23 * 64 + 64 + 64 * 32 + 32 + 32 * 2 + 2),
        ("2nn", (8, 8), 10, 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
    ],
)
def test_models_have_the_published_number_of_parameters_and_follow_the_data(
    name: str, shape: tuple[int, ...], classes: int, count: int
) -> None:
    model = build_model(_spec(name, shape, classes))
    assert num_parameters(model) == count
    assert len(initial_vector(_spec(name, shape, classes), 0)) == count
    features = torch.zeros(2, *shape)
    inputs = model.prepare(features, None) if isinstance(model, Prepares) else features
    assert model(inputs).shape == (2, classes)


@pytest.mark.parametrize("shape", [(8, 8), (9, 14), (2, 10, 5)])
def test_the_cnn_takes_images_of_any_size(shape: tuple[int, ...]) -> None:
    assert build_model(_spec("cnn", shape, 3))(torch.zeros(1, *shape)).shape == (1, 3)


@pytest.mark.parametrize(("name", "shape"), [("cnn", (23,)), ("cnn", (3, 3)), ("cifar_cnn", (28, 20))])
def test_a_shape_that_does_not_fit_is_refused_naming_both(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=rf"model {name} .* shape \[{shape[0]}"):
        build_model(_spec(name, shape))


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"unknown model 'gpt' \(available: 2nn, cifar_cnn, cnn, logistic, mlp"):
        build_model(_spec("gpt", (28, 28)))


def test_the_initial_model_is_the_seeds_and_torchs_own_stream_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = initial_vector(_spec("2nn", (8, 8)), 3)
    torch.manual_seed(99)
    other = initial_vector(_spec("2nn", (8, 8)), 3)
    torch.manual_seed(1)
    assert one.tobytes() == other.tobytes()
    assert one.tobytes() != initial_vector(_spec("2nn", (8, 8)), 4).tobytes()
    build_model(_spec("2nn", (8, 8)))
    assert torch.rand(1) == expected


def test_a_vector_read_from_a_model_gives_the_model_back() -> None:
    model = build_model(_spec("mlp", (5,), 3))
    vector = vector_of(model)
    vector.flags.writeable = False
    other = build_model(_spec("mlp", (5,), 3), seed=1)
    load_vector(other, vector)
    out = np.zeros_like(vector)
    assert vector_of(other, out) is out
    assert out.tobytes() == vector.tobytes()
    flat = share_vector(other)
    flat.mul_(2)
    assert np.array_equal(vector_of(other), 2 * vector)
    with pytest.raises(BadInput, match="belong to different models"):
        load_vector(other, vector[1:])


def test_crops_are_the_seeds_in_training_and_the_centre_in_testing() -> None:
    model = CroppedCnn(3, 64, (384, 192), 24, 10)
    images = torch.rand(6, 3, 32, 32)
    one, same, other = (model.prepare(images, generator(0, "augment", number)) for number in (1, 1, 2))
    assert one.shape == (6, 3, 24, 24)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    centre = images[:, :, 4:28, 4:28].reshape(6, -1)
    expected = (centre - centre.mean(1, keepdim=True)) / centre.std(1, correction=0, keepdim=True)
    assert torch.allclose(model.prepare(images, None).reshape(6, -1), expected, atol=1e-6)


def test_a_random_crop_is_a_window_of_the_image_perhaps_mirrored() -> None:
    image = torch.arange(30.0 * 28).reshape(1, 30, 28)
    model = CroppedCnn(1, 64, (384, 192), 24, 2)
    seen = set()
    for number in range(40):
        crop = model.prepare(image, generator(0, "augment", number))[0, 0]
        window = min(
            (float((model.prepare(_window(image, top, left, mirrored), None)[0, 0] - crop).abs().max()), mirrored)
            for top in range(7)
            for left in range(5)
            for mirrored in (False, True)
        )
        assert window[0] < 1e-5
        seen.add(window[1])
    assert seen == {False, True}


def _window(image: torch.Tensor, top: int, left: int, mirrored: bool) -> torch.Tensor:
    window = image[:, top : top + 24, left : left + 24]
    return window.flip(2) if mirrored else window


class _Made(Model):
    """A model of a package, whose network the test makes."""

    def __init__(self, network: Callable[[], object]) -> None:
        super().__init__()
        self.network = network

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:  # noqa: ARG002
        return cast("nn.Module", self.network())


class _Odd(nn.Module):
    """Something is odd about it."""

    def __init__(self, **odd: object) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        for name, value in odd.items():
            setattr(self, name, value)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features)


class _Detached(_Odd):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).detach()


class _Pair(_Odd):
    def forward(self, features: torch.Tensor) -> object:
        return super().forward(features), 0


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: "a model", r"returns a str, not a torch\.nn\.Module"),
        (nn.Identity, "has no parameters"),
        (lambda: nn.Linear(4, 2).double(), r"weight is torch\.float64, bias is torch\.float64; .*model\.float"),
        (lambda: nn.Linear(4, 2).requires_grad_(False), "all its parameters are frozen"),
        (lambda: _Odd(extra=nn.Linear(2, 2)), r"extra\.weight, extra\.bias has no part in what the model gives"),
        (_Detached, r"layer\.weight, layer\.bias has no part"),
        (lambda: nn.Linear(4, 3), r"for 2 examples and 2 classes \[2, 2\]; it gives \[2, 3\]"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.Flatten(0)), r"it gives \[4\]"),
        (_Pair, "it gives a tuple"),
    ],
)
def test_a_model_that_cannot_be_averaged_or_trained_is_refused_before_the_first_round(
    network: Callable[[], object], message: str
) -> None:
    with pytest.raises(BadInput, match=f"model odd.*{message}"):
        initial_vector(_spec("odd", (4,), 2), 0, _Made(network))


def test_what_never_changes_may_be_a_buffer_besides_the_parameters() -> None:
    def network() -> nn.Module:
        model = _Odd()
        model.register_buffer("mean", torch.ones(4), persistent=False)
        return model

    assert initial_vector(_spec("odd", (4,), 2), 0, _Made(network)).shape == (10,)


def test_a_model_whose_package_is_broken_is_named_with_its_place() -> None:
    point = EntryPoint("odd", "not_installed_here:odd", plugins.MODELS)
    with (
        plugins.registered(plugins.MODELS, point),
        pytest.raises(BadInput, match=r"model odd \(not_installed_here:odd\) cannot be loaded: No module named"),
    ):
        build_model(_spec("odd", (4,), 2))


@pytest.mark.parametrize(
    ("name", "shape", "options", "count"),
    [
        ("mlp", (5,), {"hidden": (8,)}, 5 * 8 + 8 + 8 * 3 + 3),
        ("2nn", (5,), {"hidden": "7, 6,5"}, 5 * 7 + 7 + 7 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3),
        ("cnn", (8, 8), {"channels": [2, 3], "hidden": 4}, 52 + 153 + 3 * 4 * 4 + 4 + 4 * 3 + 3),
        ("cifar_cnn", (24, 24), {"channels": 2, "hidden": "4, 3"}, 52 + 102 + 72 * 4 + 4 + 15 + 12),
    ],
)
def test_options_of_a_model_are_the_sizes_of_its_layers(
    name: str, shape: tuple[int, ...], options: dict[str, Any], count: int
) -> None:
    assert len(initial_vector(_spec(name, shape, 3, **options), 0)) == count


def test_wrong_options_of_a_model_are_named() -> None:
    for hidden, problem in (("", "at least 1"), ("8, wide", "whole number"), ("0", "must be at least 1")):
        with pytest.raises(BadInput, match=f"options of the model mlp: hidden.*{problem}"):
            build_model(_spec("mlp", (5,), hidden=hidden))
    with pytest.raises(BadInput, match=r"layers: is not an option of mlp \(options: hidden\)"):
        build_model(_spec("mlp", (5,), layers=3))
