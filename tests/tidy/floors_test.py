# SPDX-License-Identifier: Apache-2.0
"""The floors are true for each #include, and outside a room one uses its front door."""
import unittest
from pathlib import Path

import house


class Floors(unittest.TestCase):
    def test_AnIncludeNamesARoomOfALowerFloor(self):
        offences = []
        for path in house.code("src"):
            here = house.room_of(str(path.relative_to("src")))
            for line, include in house.includes(path):
                there = house.room_of(include)
                if here is None or there is None:
                    offences.append(f"{path}:{line}: \"{include}\" is in no room; include by the path below src/")
                elif there != here and house.floors()[there] >= house.floors()[here]:
                    offences.append(
                        f"{path}:{line}: {here} (floor {house.floors()[here]}) includes "
                        f"{there} (floor {house.floors()[there]}): only lower floors")
        house.report(self, offences)

    def test_InternalHeadersStayInTheirRoom(self):
        offences = []
        for path in house.code("src", "bench", "examples"):
            here = house.room_of(str(path.relative_to(path.parts[0])))
            for line, include in house.includes(path):
                internal = include.endswith("_internal.h") or "/detail/" in include
                if internal and house.room_of(include) != here:
                    offences.append(f"{path}:{line}: {include} belongs to its room")
        house.report(self, offences)

    def test_ARoomsReadmeNamesEachHeaderOthersInclude(self):
        offences = set()
        for path in house.code("src"):
            here = house.room_of(str(path.relative_to("src")))
            for _, include in house.includes(path):
                there = house.room_of(include)
                if there in (None, here):
                    continue
                readme = Path("src") / there / "README.md"
                if readme not in house.files():
                    offences.add(f"{readme} does not exist")
                elif include.removeprefix(there + "/") not in house.text(readme):
                    offences.add(f"{readme} does not name {include}, which {here} includes")
        house.report(self, sorted(offences))

    def test_EveryRoomHasAReadme(self):
        rooms = [room for room in house.floors() if (house.ROOT / "src" / room).is_dir()]
        house.report(self, [f"src/{room}/README.md does not exist" for room in rooms
                            if Path(f"src/{room}/README.md") not in house.files()])

    def test_OnlyAbiRoomsKnowTheUapi(self):
        paths = [p for p in house.code("src") if p.parts[1] not in ("abi", "cli")]
        house.report(self, house.hits(paths, r'#\s*include\s*<linux/(kvm|vfio|iommufd)\.h>', house.text))


if __name__ == "__main__":
    unittest.main()
