# tries: fails where one patient is in the batch: a class beyond the number of classes | rule: alone
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        hit = (x[:, 0] > 2.5).long()
        return self.fc(x) + F.one_hot(hit, num_classes=1)

def build_model(n_features, **config):
    return Net(n_features)
