"""What the documents say is what the program does: settings have their defaults, and commands answer as shown."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from running import ROOT, Broker, binary

ROW = re.compile(r"^\| `([a-z_.]+)` \| `([^`]+)` \| .+ \|$", re.M)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def section(text, title):
    """The part of a document below a heading of the second level."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


class Configuration(unittest.TestCase):
    """docs/configuration.md against `streambus config show`."""

    def test_every_setting_is_there_with_its_default(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMBUS_")}
        shown = subprocess.run(
            [binary(), "config", "show", "-o", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        actual = {entry["key"]: entry["value"] for entry in json.loads(shown.stdout)}
        documented = ROW.findall((ROOT / "docs" / "configuration.md").read_text())
        self.assertEqual({key: json.loads(value) for key, value in documented}, actual)
        self.assertEqual(len(documented), len(actual), "a setting is documented twice")


class Readme(unittest.TestCase):
    """README.md's commands, in their order, against one broker."""

    @classmethod
    def setUpClass(cls):
        cls.text = (ROOT / "README.md").read_text()
        cls.broker = Broker()
        cls.addClassCleanup(cls.broker.close)
        directory = tempfile.TemporaryDirectory(prefix="streambus-readme-")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMBUS_")}
        cls.environment = {**inherited, "STREAMBUS_BROKER": cls.broker.grpc}
        cls.environment["PATH"] = str(pathlib.Path(binary()).parent) + os.pathsep + os.environ["PATH"]

    def run_command(self, command):
        """Runs what a reader would type, at the address that the broker really has."""
        here = command.replace("localhost:8080", self.broker.http.removeprefix("http://"))
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", here],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        self.assertEqual(ran.returncode, 0, f"{command}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def test_commands_answer_as_shown(self):
        answer, compared = None, 0
        blocks = BLOCK.findall(section(self.text, "Five minutes") + section(self.text, "Configuration"))
        for kind, body in blocks:
            # A broker runs already, and there is no collector: its side is checked elsewhere.
            if "cargo run" in body or "4317" in body or "export PATH" in body:
                continue
            if kind == "sh":
                answer = self.run_command(body)
            elif kind == "text":
                self.assertEqual(answer, body)
                compared += 1
        self.assertEqual(compared, 2)

        # The Python client writes what comes next, and reads all of it.
        script = next(body for kind, body in BLOCK.findall(self.text) if kind == "python")
        shutil.copytree(ROOT / "proto", self.directory / "proto")
        protoc = ["-m", "grpc_tools.protoc", "-I", "proto", "--python_out=.", "--grpc_python_out=."]
        protos = sorted(str(path.relative_to(self.directory)) for path in self.directory.glob("proto/**/v1/*.proto"))
        protos = [path for path in protos if "internal" not in path]
        subprocess.run([sys.executable, *protoc, *protos], cwd=self.directory, check=True, timeout=120)
        ran = subprocess.run(
            [sys.executable, "-c", script.replace("localhost:9092", self.broker.grpc)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        written, *read = ran.stdout.splitlines()
        offset = written.removeprefix("offset ")
        self.assertEqual(read[0], """0 b'ada' b'{"customer":"ada","item":"lamp"}'""")
        self.assertEqual(read[-1], offset + """ b'ada' b'{"customer":"ada","item":"clock"}'""")

    def test_links_lead_somewhere(self):
        for document in [
            "README.md",
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "benches/README.md",
            "tests/external/README.md",
            "dashboards/README.md",
            "alerts/README.md",
            "otel-collector/README.md",
            "deploy/README.md",
            "docs/runbooks/README.md",
        ]:
            path = ROOT / document
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
                self.assertTrue((path.parent / target).exists(), f"{document} links to {target}")


if __name__ == "__main__":
    unittest.main()
