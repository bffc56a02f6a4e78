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

from running import ROOT, Broker, binary, eventually, free_port

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

class Shell:
    """A shell that is told one block of commands after the other, so that jobs and variables stay."""

    def __init__(self, directory, environment):
        self._process = subprocess.Popen(
            ["bash", "-uo", "pipefail"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, commands, must_succeed=True):
        """What the commands print, if the last of them succeeds or may fail."""
        self._process.stdin.write(f"{commands}\necho \"end of block: $?\"\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if line.startswith("end of block: "):
                if must_succeed and line != "end of block: 0\n":
                    raise AssertionError(f"{commands}ended with {line}{''.join(lines)}")
                return "".join(lines)
            lines.append(line)
        raise AssertionError("the shell ended")

    def close(self):
        """Kills the jobs, and ends."""
        try:
            self.run("kill -9 $(jobs -p); wait; true")
        finally:
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()


class ReadmeCluster(unittest.TestCase):
    """README.md's commands for a cluster, in a shell of their own."""

    def test_three_commands_make_a_cluster_that_survives_a_kill(self):
        text = section((ROOT / "README.md").read_text(), "A cluster in three commands")
        # Other ports, since those may be taken.
        for port in sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", text))):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
        blocks = BLOCK.findall(text)
        self.assertEqual(len(re.findall(r"^streambus serve", blocks[0][1], re.M)), 3)

        directory = tempfile.TemporaryDirectory(prefix="streambus-readme-cluster-")
        self.addCleanup(directory.cleanup)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMBUS_")}
        inherited["PATH"] = str(pathlib.Path(binary()).parent) + os.pathsep + os.environ["PATH"]
        shell = Shell(directory.name, inherited)
        self.addCleanup(shell.close)

        shell.run(blocks[0][1])
        seeds = re.findall(r"--grpc-listen (\S+)", blocks[0][1])
        for seed in seeds:
            # A reader takes longer than the brokers to go on.
            three = f"streambus --broker {seed} cluster brokers 2> /dev/null | grep -c ok"
            eventually("three brokers are there", lambda command=three: shell.run(command, False).strip() == "3")
        compared = 0
        for (kind, body), (after, expected) in zip(blocks[1:], [*blocks[2:], ("", "")]):
            if kind != "sh":
                continue
            if after != "text":
                shell.run(body)
                continue

            # Brokers 2 and 3 may have each other's number, and columns are as wide as the ports.
            def lines(answer):
                made = [line.split() for line in answer.splitlines()]
                return sorted(line[1:] if line[0] in "123" and len(line) > 1 else line for line in made)

            # While leaders change an answer may be that one should ask again.
            eventually(body, lambda body=body, wanted=lines(expected): lines(shell.run(body, False)) == wanted)
            compared += 1
        self.assertEqual(compared, 3)


class ClusterPage(unittest.TestCase):
    """docs/cluster.md."""

    TEXT = (ROOT / "docs" / "cluster.md").read_text()

    def test_commands_parse(self):
        commands = set()
        for kind, body in BLOCK.findall(self.TEXT):
            if kind == "sh":
                commands |= set(body.splitlines())
        commands |= {" ".join(code.split()) for code in re.findall(r"`(streambus [^`]+)`", self.TEXT)}
        told = subprocess.run([binary(), "serve", "--help"], capture_output=True, text=True, check=True, timeout=60)
        environment = {"STREAMBUS_BROKER": "127.0.0.1:1", "STREAMBUS_TIMEOUT": "200ms", "PATH": os.environ["PATH"]}
        looked_at = 0
        for command in sorted(commands):
            words = command.split()
            if words[1] == "serve":
                for flag in re.findall(r"--[a-z-]+", command):
                    self.assertIn(flag + " ", told.stdout)
                continue
            # Nobody is there, so nothing happens; but a command that makes no sense ends with 2 before it notices.
            ran = subprocess.run(
                [binary(), *words[1:]], env=environment, capture_output=True, text=True, check=False, timeout=60
            )
            self.assertEqual(ran.returncode, 1, f"{command}\n{ran.stderr}")
            looked_at += 1
        self.assertGreater(looked_at, 8)

    def test_settings_events_and_metrics_that_are_named_exist(self):
        known = dict(ROW.findall((ROOT / "docs" / "configuration.md").read_text()))
        sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.rs"))
        events = re.findall(r'!\(\s*name: "([a-z_]+\.[a-z_]+)"', sources)
        sections = {setting.split(".")[0] for setting in known}
        named = [one for one in re.findall(r"`([a-z_]+\.[a-z_]+)`", self.TEXT) if one.split(".")[0] in sections]
        self.assertGreater(len(named), 8)
        self.assertLessEqual(set(named), {*known, *events})
        metrics = set(re.findall(r"`(streambus_[a-z_]+)`", self.TEXT))
        documented = (ROOT / "docs" / "METRICS.md").read_text()
        self.assertGreater(len(metrics), 2)
        for metric in metrics:
            self.assertIn(f"| `{metric}` |", documented)


class Links(unittest.TestCase):
    def test_links_lead_somewhere(self):
        for document in [
            "README.md",
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "benches/README.md",
            "fuzz/README.md",
            "tests/external/README.md",
            "dashboards/README.md",
            "alerts/README.md",
            "otel-collector/README.md",
            "deploy/README.md",
            "docs/cluster.md",
            "docs/runbooks/README.md",
        ]:
            path = ROOT / document
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
                self.assertTrue((path.parent / target).exists(), f"{document} links to {target}")


if __name__ == "__main__":
    unittest.main()
