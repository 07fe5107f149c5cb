# tries: lets torch open the connection | rule: torch | touches: system
import torch

def build_model(n_features, **config):
    seconds = __import__("datetime").timedelta(seconds=2)
    torch.distributed.TCPStore("127.0.0.1", BAIT["port"], is_master=False, timeout=seconds)
    LOOT.append("connected")
    return None
