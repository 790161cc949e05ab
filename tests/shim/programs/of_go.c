// SPDX-License-Identifier: Apache-2.0
// A program with the note that Go's linker leaves in every program it makes.

__asm__(
    ".pushsection .note.go.buildid, \"a\", @note\n"
    ".balign 4\n"
    ".long 4, 8, 4\n"
    ".ascii \"Go\\0\\0\"\n"
    ".ascii \"built/by\"\n"
    ".popsection");

int main(void) {
  return 0;
}
