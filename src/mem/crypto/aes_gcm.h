/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The door of the second object (libstagetwo_crypto.so): AES-256-GCM of libcrypto, which is linked
   into it statically and seen by nobody else. Plain C: the object is loaded at run time, when the
   first page is sealed, and has one exported name.

   A key is a context of one thread at a time. Nothing here keeps the address of a buffer. */

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STAGETWO_CIPHER_VERSION 1

struct stagetwo_cipher_memory {
  void* (*get)(size_t bytes);
  void* (*resize)(void* block, size_t bytes);
  void (*give_back)(void* block);
};

/* One run of the cipher. The nonce has 12 bytes, the tag 16. */
struct stagetwo_cipher_run {
  const unsigned char* nonce;
  const void* associated;
  size_t associated_bytes;
  const void* from;
  void* to;
  size_t bytes;
  unsigned char* tag;
};

struct stagetwo_cipher_calls {
  unsigned version;
  /* Once, before anything else: where libcrypto has its memory, and so its keys. 0: ready. */
  int (*begin)(const struct stagetwo_cipher_memory* memory);
  /* 32 bytes. NULL: no memory. */
  void* (*new_key)(const unsigned char* key);
  /* Wipes it. NULL is allowed. */
  void (*free_key)(void* key);
  /* 0: done. */
  int (*seal)(void* key, const struct stagetwo_cipher_run* run);
  /* 0: the tag is right; else it is not, and what stands at `to` is zeros. */
  int (*open)(void* key, const struct stagetwo_cipher_run* run);
};

/* The one name. */
__attribute__((visibility("default"))) const struct stagetwo_cipher_calls* stagetwo_cipher(void);

#ifdef __cplusplus
}
#endif
