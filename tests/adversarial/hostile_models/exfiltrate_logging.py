# tries: logs rows | rule: import
import logging

logging.warning("rows")

def build_model(n_features, **config):
    return None
