/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/crypto/aes_gcm.h"

#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdint.h>

/* libcrypto is told to read no configuration, to register nothing at exit and to use the engine's
   memory. The cipher is fetched once; a key has a context for each direction, so that no page pays
   for its schedule again. */

enum { kTag = 16 };

struct Key {
  EVP_CIPHER_CTX* seal;
  EVP_CIPHER_CTX* open;
};

static struct stagetwo_cipher_memory memory;
static EVP_CIPHER* cipher;

static void* get(size_t bytes, const char* file, int line) {
  (void)file;
  (void)line;
  return memory.get(bytes);
}
static void* resize(void* block, size_t bytes, const char* file, int line) {
  (void)file;
  (void)line;
  return memory.resize(block, bytes);
}
static void give_back(void* block, const char* file, int line) {
  (void)file;
  (void)line;
  memory.give_back(block);
}

static int begin(const struct stagetwo_cipher_memory* engine) {
  memory = *engine;
  if (CRYPTO_set_mem_functions(get, resize, give_back) != 1) return -1;
  const uint64_t quiet =
      OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT | OPENSSL_INIT_NO_LOAD_CRYPTO_STRINGS;
  if (OPENSSL_init_crypto(quiet, NULL) != 1) return -1;
  cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
  return cipher != NULL ? 0 : -1;
}

static void free_key(void* at) {
  struct Key* key = at;
  if (key == NULL) return;
  EVP_CIPHER_CTX_free(key->seal);
  EVP_CIPHER_CTX_free(key->open);
  memory.give_back(key);
}

static void* new_key(const unsigned char* bytes) {
  struct Key* key = memory.get(sizeof(*key));
  if (key == NULL) return NULL;
  key->seal = EVP_CIPHER_CTX_new();
  key->open = EVP_CIPHER_CTX_new();
  if (key->seal != NULL && key->open != NULL &&
      EVP_EncryptInit_ex2(key->seal, cipher, bytes, NULL, NULL) == 1 &&
      EVP_DecryptInit_ex2(key->open, cipher, bytes, NULL, NULL) == 1) {
    return key;
  }
  free_key(key);
  return NULL;
}

static int seal(void* at, const struct stagetwo_cipher_run* run) {
  EVP_CIPHER_CTX* ctx = ((struct Key*)at)->seal;
  int done = 0;
  if (run->bytes > INT_MAX || run->associated_bytes > INT_MAX) return -1;
  if (EVP_EncryptInit_ex2(ctx, NULL, NULL, run->nonce, NULL) != 1 ||
      EVP_EncryptUpdate(ctx, NULL, &done, run->associated, (int)run->associated_bytes) != 1 ||
      EVP_EncryptUpdate(ctx, run->to, &done, run->from, (int)run->bytes) != 1 ||
      done != (int)run->bytes ||
      EVP_EncryptFinal_ex(ctx, (unsigned char*)run->to + done, &done) != 1 ||
      EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, kTag, run->tag) != 1) {
    OPENSSL_cleanse(run->to, run->bytes);
    return -1;
  }
  return 0;
}

/* "open" is libc's name. */
static int unseal(void* at, const struct stagetwo_cipher_run* run) {
  EVP_CIPHER_CTX* ctx = ((struct Key*)at)->open;
  int done = 0;
  if (run->bytes > INT_MAX || run->associated_bytes > INT_MAX) return -1;
  if (EVP_DecryptInit_ex2(ctx, NULL, NULL, run->nonce, NULL) != 1 ||
      EVP_DecryptUpdate(ctx, NULL, &done, run->associated, (int)run->associated_bytes) != 1 ||
      EVP_DecryptUpdate(ctx, run->to, &done, run->from, (int)run->bytes) != 1 ||
      done != (int)run->bytes ||
      EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, kTag, run->tag) != 1 ||
      EVP_DecryptFinal_ex(ctx, (unsigned char*)run->to + done, &done) != 1) {
    OPENSSL_cleanse(run->to, run->bytes);
    return -1;
  }
  return 0;
}

const struct stagetwo_cipher_calls* stagetwo_cipher(void) {
  static const struct stagetwo_cipher_calls calls = {
      STAGETWO_CIPHER_VERSION, begin, new_key, free_key, seal, unseal};
  return &calls;
}
