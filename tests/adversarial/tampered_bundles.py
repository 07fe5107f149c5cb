"""More than a hundred tampered evidence bundles, and what the verifier alone says of each."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasites.hospital.evidence.bundle import build_bundle
from datasites.study.identity import Identity
from tests.adversarial.tampered_archives import Files, Tampered, of_the_archive
from tests.adversarial.tampered_contents import with_the_key
from tests.adversarial.tampered_work import of_work
from tests.hospital.evidence_of import Hospital, unpack

#: What the verifier may take for one bundle: bytes of address space, and CPU seconds.
MEMORY, SECONDS = 2 * 1024**3, 30
#: What it holds at most, in MiB.
PEAK = 256
#: A child's peak begins at what its parent held when it was forked: so the verifier's parent is a small process, which
#: tells exit status, output, CPU seconds and KiB.
LAUNCHER = """
import json, resource, subprocess, sys
memory, seconds, *command = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
output = done.stdout.decode(errors="replace")
print(json.dumps([done.returncode, output, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def tampered_bundles() -> list[Tampered]:
    """All of them."""
    return list(itertools.chain(of_the_archive(), with_the_key(), of_work()))


def good_bundle(folder: Path) -> tuple[Files, Identity]:
    """The files of a bundle that verifies, and its hospital's key."""
    hospital = Hospital(folder)
    hospital.run()
    checks = build_bundle(folder / "good.zip", hospital.contents)
    assert all(check.ok for check in checks), checks
    return unpack(folder / "good.zip"), hospital.identity


@dataclass(frozen=True)
class Told:
    """What the stand-alone verifier said of one bundle: exit status, output, CPU seconds, MiB at the peak."""

    status: int
    output: str
    seconds: float
    memory: float

    def finds(self, tampered: Tampered) -> bool:
        """Whether the check that must fail does, with the words of its sentence."""
        lines = self.output.splitlines()
        return self.status == 1 and any(
            line.startswith(f"FAILED  {tampered.check}: ") and tampered.words in line for line in lines
        )


def ask(verifier: Path, bundle: Path, key: str) -> Told:
    """Run the verifier alone, with at most `MEMORY` of address space and `SECONDS` of CPU."""
    command = [sys.executable, "-I", "-c", LAUNCHER, str(MEMORY), str(SECONDS)]
    verify = [sys.executable, "-I", str(verifier), str(bundle), "--key", key]
    launched = subprocess.run([*command, *verify], stdout=subprocess.PIPE, check=True)
    status, output, seconds, peak = json.loads(launched.stdout)
    return Told(status, output, seconds, peak / 1024)


def show(folder: Path) -> Iterator[tuple[Tampered, Told]]:
    """Write each tampered bundle in turn and ask the verifier that lies in a good one."""
    files, key = good_bundle(folder)
    verifier = folder / "verify_bundle.py"
    verifier.write_bytes(files["verify_bundle.py"])
    assert ask(verifier, folder / "good.zip", key.public_key).status == 0
    for tampered in tampered_bundles():
        path = folder / "tampered.zip"
        tampered.write(path, dict(files), key)
        yield tampered, ask(verifier, path, key.public_key)
        path.unlink()
