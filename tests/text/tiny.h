/* Small tokenizers for unit tests: complete alphabets, a handful of merges. */
#ifndef WEFT_TESTS_TEXT_TINY_H
#define WEFT_TESTS_TEXT_TINY_H

#include "weft/tokenizer.h"

/* tokenizer.json texts, from malloc; the caller frees. */

/* Llama 2's pipeline: <unk> <s> </s>, 256 byte tokens from id 3, then letters; merges up to 8 times "a". */
char *tiny_sentencepiece(void);
/* GPT-2's pipeline: 256 byte characters from id 0, merges up to 8 times "a", then <|end|>, special. */
char *tiny_byte_level(void);

/* The same, opened; fails the test when it does not open. */
struct weft_tokenizer *tiny_open(char *(*make)(void));

#endif
