# tries: shows a reviewer another text than Python reads | rule: characters
from torch import nn

# approved ‮ }⁦if safe⁩ ⁦ begin
def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
