# tries: reads a file through the C library | rule: import | touches: system live
import ctypes

libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(64)
handle = libc.open(BAIT["file"].encode(), 0)
if handle >= 0 and libc.read(handle, buffer, 63) > 0:
    LOOT.append(buffer.value.decode())

def build_model(n_features, **config):
    return None
