# tries: sends a value in the name of a host that it looks up | rule: import | touches: system
import socket

LOOT.append(str(socket.getaddrinfo("localhost", 80)[0][4]) if socket.gethostbyname("example.org") else "")

def build_model(n_features, **config):
    return None
