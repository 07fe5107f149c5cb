"""The negative log-likelihood of classes at several steps of a sequence, summed for each row."""

import torch.nn.functional as F
from torch import nn

STEPS = 4


class Net(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.fc = nn.Linear(n_features, 2 * STEPS)

    def forward(self, x):
        return self.fc(x).view(x.shape[0], 2, STEPS)


def loss(logits, target):
    classes = target.long().unsqueeze(1).expand(-1, STEPS)
    return F.nll_loss(F.log_softmax(logits, dim=1), classes, reduction="none").sum(dim=1)


def build_model(n_features, **config):
    return Net(n_features)
