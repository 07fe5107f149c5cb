"""More than a hundred tampered evidence bundles, and what the verifier alone says of each."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasites.hospital.evidence import build_bundle
from datasites.study.identity import Identity
from tests.adversarial.tampered_archives import Files, Tampered, of_the_archive
from tests.adversarial.tampered_contents import with_the_key
from tests.adversarial.tampered_work import of_work
from tests.hospital.evidence_of import (
    Hospital,
    unpack,
)

#: What the verifier may take for one bundle: bytes of address space, and CPU seconds.
MEMORY, SECONDS = 2 * 1024**3, 30


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
    """What the stand-alone verifier said of one bundle: exit status, output, CPU seconds, and memory in MiB."""

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

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    command = [sys.executable, "-I", str(verifier), str(bundle), "--key", key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limit) as child:
        assert child.stdout is not None
        output = child.stdout.read().decode()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    # A child's peak begins at what its parent held when it was forked; no less can be seen of it.
    peak = used.ru_maxrss if used.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else 0
    return Told(child.returncode, output, used.ru_utime + used.ru_stime, peak / 1024)


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
