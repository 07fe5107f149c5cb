# tries: connects to a port of the host | rule: import | touches: system live
import socket

connection = socket.create_connection(("127.0.0.1", BAIT["port"]), timeout=2)
LOOT.append("connected")

def build_model(n_features, **config):
    return None
