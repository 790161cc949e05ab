# SPDX-License-Identifier: Apache-2.0
"""A fork beside the first VM of a process that may have secure guests: the child makes its own pool."""
import subprocess
import sys
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"

# Awake first, so that the fork is known of; then one thread makes VMs, the first with its pool.
CLIENT = """
import fcntl, os, signal, threading, time
KVM_GET_API_VERSION, KVM_CREATE_VM = 0xAE00, 0xAE01
kvm = os.open("/dev/kvm", os.O_RDWR)
fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
def makes_vm(): os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
first = threading.Thread(target=makes_vm)
first.start()
lost = 0
for turn in range(6):
    time.sleep(0.0003)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), KVM_CREATE_VM, 0)
        os._exit(0)
    lost += os.waitpid(child, 0)[1] != 0
first.join()
print(lost, "children lost")
"""


class FirstVm(unittest.TestCase):
    def test_AChildOfAForkBesideItMakesItsOwn(self):
        done = subprocess.run([str(BUILD / "bin/stagetwo"), "run", "--secure=4G", "--", sys.executable, "-c", CLIENT],
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=200)
        self.assertEqual((0, "0 children lost\n", ""), (done.returncode, done.stdout, done.stderr))


if __name__ == "__main__":
    unittest.main()
