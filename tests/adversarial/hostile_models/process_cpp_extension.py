# tries: compiles and loads C++ | rule: import | touches: system
from torch.utils import cpp_extension

cpp_extension.load_inline("evil", cpp_sources="int g() { return 1; }", functions=["g"])
LOOT.append("compiled")

def build_model(n_features, **config):
    return None
