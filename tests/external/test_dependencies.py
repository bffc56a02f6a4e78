"""One version of each library whose types cross module borders: two would be two incompatible sets of types."""

import collections
import subprocess
import unittest

from running import ROOT

SINGLE = {"tonic", "prost", "h2", "hyper", "axum", "tower", "tokio", "bytes", "http", "fjall", "openraft"}
# Released together; a mixture compiles and then exports nothing.
TOGETHER = "opentelemetry"


class Dependencies(unittest.TestCase):
    """What `cargo tree` says of the package, its build script and its tests."""

    @classmethod
    def setUpClass(cls):
        listed = subprocess.run(
            ["cargo", "tree", "--locked", "--prefix", "none", "--format", "{p}", "--edges", "normal,build,dev"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        cls.versions = collections.defaultdict(set)
        for line in listed.stdout.splitlines():
            if line.strip():
                name, version = line.split()[:2]
                cls.versions[name].add(version)

    def test_central_libraries_are_there_once(self):
        self.assertEqual({name: self.versions[name] for name in SINGLE if len(self.versions[name]) != 1}, {})

    def test_opentelemetry_is_of_one_release(self):
        crates = {name: versions for name, versions in self.versions.items() if name.startswith(TOGETHER)}
        self.assertGreaterEqual(len(crates), 6)
        minors = {version.rsplit(".", 1)[0] for versions in crates.values() for version in versions}
        self.assertEqual(len(minors), 1, crates)


if __name__ == "__main__":
    unittest.main()
