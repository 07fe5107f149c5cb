#!/usr/bin/env python3
"""Runs the demo over a storage server on loopback: `python scripts/demo_over.py sftp|s3|webdav [demo arguments]`.

The server is a real one (OpenSSH, moto, wsgidav) and lives as long as the demo. Its address and credentials reach all
parties as a deployment's would: a URL in their settings, and fsspec's own configuration from the environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from loopback_servers import SERVERS, Absent

PROTOCOLS = {"sftp": "SSH", "s3": "S3", "webdav": "WEBDAV"}


def main() -> int:
    """Start the server, run the demo over it; returns the demo's exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in PROTOCOLS:
        print(f"demo_over: name a store: {', '.join(PROTOCOLS)}", file=sys.stderr)
        return 2
    kind, arguments = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="datasites-store-") as folder:
        try:
            with SERVERS[kind](Path(folder)) as (url, options):
                environment = {**os.environ, f"FSSPEC_{PROTOCOLS[kind]}": json.dumps(options)}
                demo = Path(__file__).with_name("demo.py")
                return subprocess.run([sys.executable, demo, "--store", url, *arguments], env=environment).returncode
        except Absent as error:
            print(f"demo_over: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
