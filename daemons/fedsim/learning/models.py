"""The models that tasks can train, and how a model becomes one flat vector.

A model is a factory `(feature_shape, num_classes) -> torch.nn.Module`, found by its entry point in the group
`fedsim.models`; a lab adds its own by installing a package that names one. A model whose input is not the example
itself (a random crop in training, the centre in testing) has a method `prepare`.
"""

from __future__ import annotations

from math import prod
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray
from fedsim.learning.randomness import generator

TRIED_EXAMPLES = 2


@runtime_checkable
class Prepares(Protocol):
    """A model that makes its input from examples, at random in training."""

    def prepare(self, features: Tensor, rng: np.random.Generator | None) -> Tensor:
        """From a batch of examples to the model's input; `rng` is None when testing."""


class ModelFactory(Protocol):
    """What an entry point in `fedsim.models` names."""

    def __call__(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A model for examples of this shape; raises `BadInput` where the shape does not fit."""


def logistic(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Logistic regression."""
    return _initialised(nn.Sequential(nn.Flatten(), nn.Linear(prod(feature_shape), num_classes)))


def mlp(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two hidden layers of 64 and 32, for tables."""
    return _perceptron(prod(feature_shape), 64, 32, num_classes)


def two_hidden_layers(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The 2NN of McMahan et al. 2017: two hidden layers of 200, 199,210 parameters on MNIST."""
    return _perceptron(prod(feature_shape), 200, 200, num_classes)


def mcmahan_cnn(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The CNN of McMahan et al. 2017: two 5x5 convolutions with 2x2 max pooling, 1,663,370 parameters on MNIST."""
    channels, height, width = _image_shape("cnn", feature_shape, least=4)
    model = nn.Sequential(
        nn.Unflatten(1, (1, height)) if len(feature_shape) == 2 else nn.Identity(),
        nn.Conv2d(channels, 32, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )
    return _initialised(model)


def cifar_cnn(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The CIFAR-10 model of McMahan et al. 2017, on 24x24 crops: 1,068,298 parameters with three channels."""
    channels, _, _ = _image_shape("cifar_cnn", feature_shape, least=CroppedCnn.CROP)
    return _initialised(CroppedCnn(channels, num_classes))


def _perceptron(inputs: int, first: int, second: int, outputs: int) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, outputs),
    )
    return _initialised(model)


def _initialised(model: nn.Module) -> nn.Module:
    """Weights after He et al. 2015 (uniform, variance 2 / inputs), biases 0: what rectified layers need.

    torch's own default has a sixth of that variance: the deeper signal fades, and a 2NN on MNIST is some rounds late.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def _image_shape(model: str, feature_shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """(channels, height, width)."""
    if len(feature_shape) not in {2, 3} or min(feature_shape[-2:]) < least:
        raise BadInput(
            f"model {model} takes images of at least {least}x{least}, [height, width] or [channels, height, width]; "
            f"the data set's examples have the shape {list(feature_shape)}: choose another model or data set"
        )
    channels = 1 if len(feature_shape) == 2 else feature_shape[0]
    return channels, feature_shape[-2], feature_shape[-1]


class CroppedCnn(nn.Module):
    """Two 5x5 convolutions of 64 channels and two hidden layers of 384 and 192, on crops of 24x24.

    In training an image is cropped and mirrored at random, in testing the centre is taken; then each image is brought
    to mean 0 and deviation 1 (the preparation that McMahan et al. 2017 took over from TensorFlow's tutorial).
    """

    CROP = 24

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        side = self.CROP // 4
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(64, 64, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(64 * side * side, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, num_classes),
        )

    def prepare(self, features: Tensor, rng: np.random.Generator | None) -> Tensor:
        """From images float32 [n, H, W] or [n, C, H, W] to float32 [n, C, 24, 24]."""
        images = features.unsqueeze(1) if features.dim() == 3 else features
        spare_rows, spare_columns = images.shape[2] - self.CROP, images.shape[3] - self.CROP
        if rng is None:
            top, left = spare_rows // 2, spare_columns // 2
            crops = images[:, :, top : top + self.CROP, left : left + self.CROP]
        else:
            count, pixels = len(images), np.arange(self.CROP)
            rows = rng.integers(spare_rows + 1, size=(count, 1)) + pixels
            columns = rng.integers(spare_columns + 1, size=(count, 1)) + pixels
            columns = np.where(rng.integers(2, size=(count, 1)) == 1, columns[:, ::-1], columns)
            which = torch.arange(count, device=images.device)[:, None, None]
            row = torch.from_numpy(rows).to(images.device)[:, :, None]
            column = torch.from_numpy(columns).to(images.device)[:, None, :]
            crops = images[which, :, row, column].permute(0, 3, 1, 2)
        flat = crops.reshape(len(crops), -1)
        deviation = flat.std(dim=1, correction=0, keepdim=True).clamp_min(flat.shape[1] ** -0.5)
        return ((flat - flat.mean(dim=1, keepdim=True)) / deviation).reshape(crops.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, num_classes] of prepared images."""
        return cast("Tensor", self.layers(images))


def model_name(model: str | ModelFactory) -> str:
    """What messages call a model that is given by its name or by its factory."""
    return model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)


def build_model(
    model: str | ModelFactory, feature_shape: tuple[int, ...], num_classes: int, *, seed: int = 0
) -> nn.Module:
    """The model of this name or factory, for examples of this shape, initialised from the seed.

    Every model brings its own way of being initialised, which draws from torch's global stream: that stream is set
    from the seed, and put back afterwards.

    Raises:
        BadInput: there is no such model, the shape does not fit it, or it is none that can be averaged.
    """
    factory = cast("ModelFactory", plugins.load(plugins.MODELS, model)) if isinstance(model, str) else model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator(seed, "initial model").integers(2**63)))
        built = factory(feature_shape, num_classes)
    _check_parameters(built, model_name(model))
    return built


def _check_parameters(model: object, name: str) -> None:
    """What makes a model one flat float32 vector, all of which is trained."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"model {name}: its factory gives a {type(model).__name__}, not a torch.nn.Module")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise BadInput(f"model {name} has no parameters: there is nothing to train")
    other = [f"{key} is {value.dtype}" for key, value in parameters.items() if value.dtype != torch.float32]
    if other:
        raise BadInput(f"model {name}: the parameter {_some(other)}; all must be torch.float32: use `model.float()`")
    frozen = [key for key, value in parameters.items() if not value.requires_grad]
    if frozen:
        raise BadInput(
            f"model {name}: the parameter {_some(frozen)} is frozen (requires_grad=False), and every parameter is "
            "trained and averaged; make what is fixed a buffer with persistent=False"
        )
    kept = {key for key, value in model.state_dict().items() if isinstance(value, Tensor) and value.is_floating_point()}
    statistics = sorted(kept - {key for key, _ in model.named_parameters(remove_duplicate=False)})
    if statistics:
        raise BadInput(
            f"model {name} keeps {_some(statistics)} besides its parameters, and federated rounds would lose "
            "them; use GroupNorm, or BatchNorm with track_running_stats=False; what never changes can be a buffer with "
            "persistent=False"
        )


def check_training(
    model: nn.Module,
    name: str,
    feature_shape: tuple[int, ...],
    num_classes: int,
    device: torch.device | None = None,
) -> None:
    """Try whether the model gives logits that every parameter has a part in: once, before a task trains for days.

    torch's random stream is put back afterwards.

    Raises:
        BadInput: it does not.
    """
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        examples = torch.zeros(TRIED_EXAMPLES, *feature_shape, device=device)
        inputs = model.prepare(examples, generator(0, "trial")) if isinstance(model, Prepares) else examples
        outputs: object = model.train()(inputs)
        wanted = (TRIED_EXAMPLES, num_classes)
        if not isinstance(outputs, Tensor) or outputs.shape != wanted:
            what = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise BadInput(
                f"model {name} must give logits [examples, classes]: for {TRIED_EXAMPLES} examples and {num_classes} "
                f"classes {list(wanted)}; it gives {what}"
            )
        parameters = dict(model.named_parameters())
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if outputs.requires_grad:
            gradients = torch.autograd.grad(outputs.sum(), list(parameters.values()), allow_unused=True)
    unused = [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unused:
        raise BadInput(
            f"model {name}: the parameter {_some(unused)} has no part in what the model gives and cannot be trained; "
            "take it out, or use it"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def initial_vector(
    model: str | ModelFactory, feature_shape: tuple[int, ...], num_classes: int, seed: int
) -> FloatArray:
    """The parameters with which a task begins, float32 [P]; equal arguments, equal bytes.

    Raises:
        BadInput: as `build_model` and `check_training`.
    """
    built = build_model(model, feature_shape, num_classes, seed=seed)
    vector = vector_of(built)
    check_training(built, model_name(model), feature_shape, num_classes)
    return vector


def num_parameters(model: nn.Module) -> int:
    """P, the length of the model's flat vector."""
    return sum(parameter.numel() for parameter in model.parameters())


def vector_of(model: nn.Module, out: FloatArray | None = None) -> FloatArray:
    """A model's parameters one after another as float32 [P], into `out` if it is given."""
    if out is None:
        out = np.empty(num_parameters(model), np.float32)
    start = 0
    for parameter in model.parameters():
        end = start + parameter.numel()
        out[start:end] = parameter.detach().reshape(-1).cpu().numpy()
        start = end
    return out


def load_vector(model: nn.Module, vector: FloatArray) -> None:
    """Set a model's parameters from float32 [P].

    Raises:
        BadInput: the vector has another length than the model.
    """
    size = num_parameters(model)
    if vector.shape != (size,):
        raise BadInput(f"the model has {size} parameters, the vector {vector.size}: they belong to different models")
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            end = start + parameter.numel()
            parameter.copy_(_tensor(vector[start:end]).view_as(parameter))
            start = end


def share_vector(model: nn.Module) -> Tensor:
    """Move a model's parameters into one flat tensor, float32 [P], of which they are views from then on.

    Reading or setting the whole model is then one copy.
    """
    parameters = list(model.parameters())
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat[start:end].view_as(parameter)
        start = end
    return flat


def _tensor(array: FloatArray) -> Tensor:
    # torch warns of arrays that it may not write to, such as a read-only memory map; nothing writes here.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
