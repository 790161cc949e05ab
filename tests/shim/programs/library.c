// SPDX-License-Identifier: Apache-2.0
// A library with memory of its own, which comes and goes with it.
char memory_of_the_library[1 << 20];
