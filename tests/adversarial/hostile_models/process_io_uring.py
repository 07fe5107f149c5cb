# tries: reaches the kernel by io_uring, past system call filters | rule: import | touches: system
import ctypes

buffer = ctypes.create_string_buffer(256)
if ctypes.CDLL(None).syscall(425, 4, buffer) >= 0:
    LOOT.append("io_uring")

def build_model(n_features, **config):
    return None
