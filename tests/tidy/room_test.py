# SPDX-License-Identifier: Apache-2.0
"""stagetwo_room() stops the configuration on a dependency that does not lead down."""
import subprocess
import tempfile
import unittest
from pathlib import Path

import house


def configure(rooms):
    """Configures a project of these rooms with the house's own CMake file; answers (status, output)."""
    with tempfile.TemporaryDirectory(prefix="stagetwo-room-") as folder:
        project = Path(folder)
        (project / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(rooms LANGUAGES NONE)\n"
            f"include({house.ROOT}/cmake/StagetwoRoom.cmake)\n" + rooms)
        done = subprocess.run(["cmake", "-S", folder, "-B", str(project / "build"), "-G", "Ninja"],
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        return done.returncode, " ".join((done.stdout + done.stderr).split())


class Room(unittest.TestCase):
    BELOW = "stagetwo_room(NAME base FLOOR 0)\nstagetwo_room(NAME sync FLOOR 1 USES base)\n"

    def test_MayUseALowerFloor(self):
        self.assertEqual(0, configure(self.BELOW)[0])

    def test_MayNotUseItsOwnFloor(self):
        status, output = configure(self.BELOW + "stagetwo_room(NAME iommu FLOOR 6 USES base)\n"
                                   "stagetwo_room(NAME stage2 FLOOR 6 USES base iommu)\n")
        self.assertNotEqual(0, status)
        self.assertIn("'stage2' (floor 6) may not use 'iommu' (floor 6)", output)

    def test_MayNotUseAHigherFloor(self):
        status, output = configure("stagetwo_room(NAME base FLOOR 0 USES sync)\n")
        self.assertNotEqual(0, status)
        self.assertIn("strictly lower floors only", output)

    def test_MayNotMoveToAnotherFloor(self):
        status, output = configure("stagetwo_room(NAME base FLOOR 3)\n")
        self.assertNotEqual(0, status)
        self.assertIn("says floor 3, the house says 0", output)

    def test_MustBeInTheList(self):
        status, output = configure("stagetwo_room(NAME cellar FLOOR 0)\n")
        self.assertNotEqual(0, status)
        self.assertIn("there is no room 'cellar'", output)


if __name__ == "__main__":
    unittest.main()
