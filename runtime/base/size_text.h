/* Sizes as people read them. */
#ifndef WEFT_BASE_SIZE_TEXT_H
#define WEFT_BASE_SIZE_TEXT_H

#include <stdint.h>

#define WEFT_SIZE_TEXT_SIZE 24

/* "1.5 GiB", "640 KiB", "12 B" into text; returns text. */
const char *weft_size_text(uint64_t size, char text[WEFT_SIZE_TEXT_SIZE]);

#endif
