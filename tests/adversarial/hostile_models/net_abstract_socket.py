# tries: connects to an abstract socket of the host | rule: import | touches: system live
import socket

connection = socket.socket(socket.AF_UNIX)
connection.connect("\0" + BAIT["socket"])
LOOT.append("connected")

def build_model(n_features, **config):
    return None
