"""The networks are those of their papers, and train in a simulated task."""

import numpy as np
import pytest
import torch
from vision_models import ResNet18, UNet
from vision_resnet import ResNet
from vision_unet import UShaped

from fedsim import plugins
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies.fedbn import FedBn
from fedsim.settings import TaskSettings
from fedsim.testing.conformance import Candidate, checks

TASK = TaskSettings(
    partition="iid",
    num_clients=2,
    fraction_train=1.0,
    local_epochs=5,
    local_batch_size=10,
    local_learning_rate=0.1,
    num_rounds=5,
)
SMALL = {"width": 4, "stem": "small"}


@pytest.mark.parametrize("check", checks(plugins.MODELS), ids=str)
def test_the_resnet_keeps_the_contract(check):
    check(Candidate(ResNet18, SMALL, feature_shape=(3, 8, 8)))


def test_a_resnet_18_has_the_published_parameters_and_their_usual_names():
    with torch.device("meta"):
        parameters = dict(ResNet(3, 1000).named_parameters())
    assert sum(parameter.numel() for parameter in parameters.values()) == 11_689_512
    assert list(parameters)[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert parameters["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert parameters["layer4.1.bn2.bias"].shape == (512,)
    assert list(parameters)[-2:] == ["fc.weight", "fc.bias"]


def test_a_photograph_is_halved_five_times():
    network, seen = ResNet(3, 10, width=2), []
    network.layer4.register_forward_hook(lambda _, __, outputs: seen.append(outputs.shape))
    assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 10)
    assert seen == [(2, 16, 7, 7)]


@pytest.mark.parametrize("shape", [(1, 16, 16), (13, 18)])
def test_a_u_net_gives_each_pixel_its_logits(shape):
    made = UNet(UNet.Options(width=2, depth=3)).build(shape, 5)
    assert made(torch.zeros(2, *shape)).shape == (2, 5, *shape[-2:])


def test_a_u_net_of_the_papers_size_has_its_channels():
    with torch.device("meta"):
        network = UShaped(1, 2)
    widths = [block[0].out_channels for block in network.down]
    assert widths == [64, 128, 256, 512, 1024]


def images(targets="classes"):
    """Images with a bright square, whose place is the class, or whose pixels are the mask."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    masks = np.zeros((40, 8, 8), np.int64)
    for mask, label in zip(masks, labels, strict=True):
        mask[2:5, 4 * label : 4 * label + 3] = 1
    features = (masks + 0.1 * rng.normal(size=masks.shape)).astype(np.float32)
    examples = Examples(features, masks if targets == "mask" else labels, targets=targets)
    return DataSet(examples, examples, 2)


def test_a_resnet_learns_with_averaged_statistics():
    result = simulate(TASK, images(), model=ResNet18(ResNet18.Options(**SMALL)))
    assert result.rounds[-1].metrics["accuracy"] > 0.9


def test_what_stays_with_the_clients_is_not_in_the_model_that_is_sent():
    model = ResNet18(ResNet18.Options(**SMALL))
    everything, shared = (simulate(TASK, images(), model=model, strategy=each) for each in (None, FedBn))
    kept = shared.client_states[0]["personal"]
    assert len(everything.vector) == len(shared.vector) + len(kept)


def test_a_u_net_learns_to_find_the_square():
    settings = TASK.model_copy(update={"objective": "segmentation"})
    result = simulate(settings, images("mask"), model=UNet(UNet.Options(width=4, depth=2)))
    assert result.rounds[-1].metrics["mean_dice"] > 0.9
