/* Post-processors: which ids stand before and behind those of the text. */
#ifndef WEFT_TEXT_TEMPLATE_H
#define WEFT_TEXT_TEMPLATE_H

#include "base/json.h"
#include "buffer.h"

struct weft_template {
    struct weft_words before; /* outermost first */
    struct weft_words after;
};

/* `object` is the member post_processor of tokenizer.json, may be NULL or null. On error *out is empty. */
WEFT_MUST_CHECK enum weft_status weft_template_init(struct weft_template *out, const char *name, const json_t *object);
void weft_template_fini(struct weft_template *template);

#endif
