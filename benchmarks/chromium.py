"""Chromium as a person has it, driven over a pipe of its DevTools protocol: a profile on disk, no debugger.

A private window keeps no compiled scripts: it compiles all of them anew at each opening. And wherever a script
is compiled anew, a driver that attaches a debugger makes V8 parse it again when the script catches an error of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PIPE = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'


def program() -> str | None:
    """Path of the Chromium to use, or None where there is none."""
    return os.environ.get("GRADSPECTRA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


class Chromium:
    """A browser with a profile in `folder`, a new one where that is empty. Close it by `with`."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900)) -> None:
        command = [str(program()), *FLAGS, f"--window-size={size[0]},{size[1]}", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={folder}", "about:blank"]
        theirs, self.commands = os.pipe()
        answers, told = os.pipe()
        ends = {"COMMANDS": str(theirs), "ANSWERS": str(told)}
        self.process = subprocess.Popen(
            ["bash", "-c", PIPE, "bash", *command],
            env=os.environ | ends,
            pass_fds=(theirs, told),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(told)
        self.answers, self.number, self.unread = os.fdopen(answers, "rb"), 0, b""

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *error: object) -> None:
        self.call("Browser.close")
        self.process.wait(30)
        os.close(self.commands)
        self.answers.close()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; raises RuntimeError where it fails."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            more = self.answers.read1(1 << 16)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.unread += more
        one, _, self.unread = self.unread.partition(b"\0")
        return dict(json.loads(one))

    def cpu_seconds(self) -> float:
        """CPU of all of its processes, and of those of them that have ended, so far."""
        parents, spent = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            process = int(stat.parent.name)
            parents[process] = int(fields[1])
            spent[process] = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")

        def below(process: int) -> bool:
            while process in parents and process != self.process.pid:
                process = parents[process]
            return process == self.process.pid

        return sum(seconds for process, seconds in spent.items() if below(process))


class Tab:
    """A new tab, in a window of its own, that runs `script` before anything else of a page."""

    def __init__(self, browser: Chromium, script: str) -> None:
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        browser.call("Page.enable", self.session)
        browser.call("Page.addScriptToEvaluateOnNewDocument", self.session, source=script)

    def open(self, address: str) -> None:
        self.browser.call("Page.navigate", self.session, url=address)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page, as JSON; None while there is none."""
        params = {"expression": expression, "returnByValue": True}
        return self.browser.call("Runtime.evaluate", self.session, **params)["result"].get("value")

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)
