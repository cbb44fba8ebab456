"""ResNet-18: residual blocks of two 3x3 convolutions, in four stages of two blocks (He et al. 2016).

He, Zhang, Ren, Sun: "Deep residual learning for image recognition", CVPR 2016, section 3.3 and table 1; where a block
changes the shape, its shortcut is a projection (option B).
"""

from torch import nn


class Block(nn.Module):
    """y = relu(F(x) + x), F two 3x3 convolutions, each followed by batch normalisation."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + shortcut).relu()


class ResNet(nn.Module):
    """The stem, four stages that double the channels and halve the image, the mean over pixels, a linear layer."""

    def __init__(self, channels, num_classes, width=64, *, small=False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():  # as the paper's reference 13, He et al. 2015
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = x if x.dim() == 4 else x.unsqueeze(1)  # images without channels
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))
