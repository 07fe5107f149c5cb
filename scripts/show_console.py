"""Takes the pictures of the console that the hospital's guide shows: of a hospital of the demo, with Debian's chromium.

A case in review, the rounds of its study as it runs, and the budget once it is over (dark, as a browser may ask for).
They go to the folder of the guide's pictures unless another one is named.

Usage: python scripts/show_console.py [FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import demo
from consortium import STEWARD

from datasites.researcher import Study
from tests.browser import Browser, chromium
from tests.e2e.support import KEYS, ROOT, LocalDatasites

SIZE = {"width": 1280, "height": 860}
#: The epsilon that the demo's consortium has.
EPSILON = 6.0
#: Rounds that have been held when the picture of them is taken.
ROUNDS = 9


def take(datasites: LocalDatasites, browser: Browser, folder: Path) -> None:
    """Run the demo's study, and take each picture when it is time."""

    def picture(name: str, path: str, theme: str = "light") -> None:
        page = browser.page(STEWARD, viewport=SIZE, color_scheme=theme)
        page.goto(path)
        page.screenshot(path=str(folder / f"{name}.png"))

    study = Study.load(datasites.consortium.study_folder)
    with datasites.federation() as federation:
        federation.submit(study)
        case_id = demo.case_id_of(datasites.consortium, datasites.hospital(KEYS[0]), study)
        picture("case", f"/cases/{case_id}/")
        datasites.approve(study)
        federation.wait(study, timeout=120, progress=False)
        run = federation.start(study)
        run.complete(rounds=ROUNDS, progress=False)
        picture("rounds", f"/studies/{case_id}/")
        run.complete(progress=False)
        picture("budget", "/budget/heart/", "dark")


def main() -> None:
    """See the module's text."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures = ROOT / "datasites" / "hospital" / "console" / "screenshots"
    arguments.add_argument("folder", type=Path, nargs="?", default=pictures, metavar="FOLDER")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="console-", ignore_cleanup_errors=True) as folder:
        datasites = LocalDatasites(Path(folder), epsilon=EPSILON)
        try:
            datasites.start(*KEYS)
            home = datasites.consortium.home(KEYS[0])
            address = json.loads((home / "run" / "ready.json").read_text())["console"]
            with chromium(address, datasites.consortium.passwords()) as browser:
                take(datasites, browser, chosen.folder)
        finally:
            datasites.stop()


if __name__ == "__main__":
    main()
